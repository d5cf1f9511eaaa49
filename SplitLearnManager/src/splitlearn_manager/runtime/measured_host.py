"""A session host that tells what it did."""

from abc import abstractmethod

from splitlearn_comm import SessionHost
from splitlearn_manager.runtime.figures import EngineReading


class MeasuredHost(SessionHost):
    """A host whose figures can be asked for."""

    @abstractmethod
    async def read(self) -> EngineReading | None:
        """Return what was done up to now, and what is held; None where it is not known.

        Raises:
            ServerUnavailableError: (of splitlearn_comm) its process has ended.
        """
