"""A model that loads, fails and dies when a test says so: for the orders of events that processes rarely show."""

import asyncio
from collections.abc import Callable

from splitlearn_comm.testing import RunningSumHost
from splitlearn_manager.errors import ModelLoadError
from splitlearn_manager.lifecycle.runner import ModelRunner
from splitlearn_manager.runtime.load_reporter import WARMING, LoadProgress, ModelSize
from splitlearn_manager.runtime.model_process import Admit
from splitlearn_manager.runtime.model_spec import ModelSpec


class ScriptedRunner(ModelRunner):
    """Keeps the promises of a `ModelRunner`, at the times that a test chooses.

    Args:
        spec: what it is.
        weights_bytes: how large.
    """

    def __init__(self, spec: ModelSpec, weights_bytes: int) -> None:
        self.spec = spec
        self.may_end = asyncio.Event()
        self.is_alive = False
        self.was_admitted = False
        self._size = ModelSize(device="cpu", weights_bytes=weights_bytes)
        self._host = RunningSumHost()
        loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[str] = loop.create_future()

    @property
    def host(self) -> RunningSumHost:
        return self._host

    @property
    def pid(self) -> int | None:
        return 1 if self.is_alive else None

    def finish_load(self, error: str | None = None) -> None:
        if not self._outcome.done():
            if error is None:
                self._outcome.set_result(None)
            else:
                self._outcome.set_exception(ModelLoadError(error))
                self._outcome.exception()  # a load that was cancelled does not look at it

    def die(self) -> None:
        self._gone("was killed by a test")

    def _gone(self, how: str) -> None:
        self.is_alive = False
        if not self._ended.done():
            self._ended.set_result(how)

    async def load(self, admit: Admit, on_progress: Callable[[LoadProgress], object]) -> None:
        self.is_alive = True
        try:
            on_progress(LoadProgress(phase="loading weights", num_done=1, num_total=2))
            await admit(self._size)
            self.was_admitted = True
            await asyncio.shield(self._outcome)
            on_progress(LoadProgress(phase=WARMING))
        except BaseException:
            self._gone("was never loaded")
            raise

    async def wait_ended(self) -> str:
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        if self.is_alive:
            await self.may_end.wait()
            self._gone("ended")
