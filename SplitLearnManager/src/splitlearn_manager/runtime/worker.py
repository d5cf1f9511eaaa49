"""The one thread on which a hosted model runs."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ResultT = TypeVar("ResultT")


class ModelWorker:
    """Runs calls one after another on one thread, so that the event loop never waits for a model.

    One thread, because a part takes one forward at a time; the calls of all sessions queue for it in order. The
    thread begins with the first call, and again with the first after a shutdown.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[[], ResultT]) -> ResultT:
        """Run a call on the model's thread and wait for its result without blocking the event loop."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def shutdown(self) -> None:
        """Wait for the call in progress and end the thread; calls still queued are dropped."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown, cancel_futures=True)
