"""The port to whatever runs a model: one load, from its start to its end."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from splitlearn_comm import SessionHost
from splitlearn_manager.runtime.load_reporter import LoadProgress
from splitlearn_manager.runtime.model_process import Admit, ModelProcess
from splitlearn_manager.runtime.model_spec import ModelSpec
from splitlearn_manager.runtime.process_host import ProcessHost


class ModelRunner(ABC):
    """One model, loaded once. Methods as of `ModelProcess`."""

    @property
    @abstractmethod
    def host(self) -> SessionHost:
        """What serves it. Of use once it was loaded."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Its process; None if it has none."""

    @abstractmethod
    async def load(self, admit: Admit, on_progress: Callable[[LoadProgress], object]) -> None:
        """Load it; when this raises, or is cancelled, nothing of it is left."""

    @abstractmethod
    async def wait_ended(self) -> str:
        """Wait until nothing of it is left; returns how it ended, in words."""

    @abstractmethod
    async def end(self) -> None:
        """End it. May be called twice."""


class ProcessRunner(ModelRunner):
    """A model in a process of its own."""

    def __init__(self, spec: ModelSpec, end_timeout_s: float) -> None:
        self._process = ModelProcess(spec, end_timeout_s=end_timeout_s)
        self._host = ProcessHost(self._process)

    @property
    def host(self) -> ProcessHost:
        """Hands everything on to the process."""
        return self._host

    @property
    def pid(self) -> int | None:
        """The process; None before it was started."""
        return self._process.pid

    async def load(self, admit: Admit, on_progress: Callable[[LoadProgress], object]) -> None:
        """Start the process and wait until the model is ready."""
        await self._process.load(admit, on_progress)

    async def wait_ended(self) -> str:
        """Wait for the end of the process."""
        return await self._process.wait_ended()

    async def end(self) -> None:
        """Have the process end in order, or kill it when it does not."""
        await self._process.end()
