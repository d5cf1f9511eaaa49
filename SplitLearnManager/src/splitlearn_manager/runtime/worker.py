"""The one thread on which a hosted model runs."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ResultT = TypeVar("ResultT")


class ModelWorker:
    """Runs calls one after another on one thread, so that the event loop never waits for a model.

    One thread, because a part takes one forward at a time; the calls of all sessions queue for it in order.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, call: Callable[[], ResultT]) -> ResultT:
        """Run a call on the model's thread and wait for its result without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def shutdown(self) -> None:
        """Wait for the call in progress and end the thread; calls still queued are dropped."""
        self._executor.shutdown(cancel_futures=True)
