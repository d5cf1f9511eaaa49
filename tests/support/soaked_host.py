"""What is served in the soak: sums, what the host still has, and a way to ask the process to tidy up."""

import ctypes
import gc
import signal
import sys
from dataclasses import replace
from types import FrameType

from splitlearn_comm import ServiceInfo
from splitlearn_comm.testing import RunningSumHost

SESSIONS = "sessions"
TIDIED = "tidied"


class SoakedHost(RunningSumHost):
    """Says in its information how many sessions it keeps, and how often its process has tidied up.

    At SIGUSR1 the process collects garbage and gives free memory back to the system, so that what it still has is what
    somebody holds: glibc keeps tens of megabytes of freed messages otherwise, more or less of them by chance.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_tidied = 0
        signal.signal(signal.SIGUSR1, self._tidy)

    def get_info(self) -> ServiceInfo:
        extra = {SESSIONS: str(self.num_sessions), TIDIED: str(self._num_tidied)}
        return replace(super().get_info(), extra=extra)

    def _tidy(self, number: int, frame: FrameType | None) -> None:
        gc.collect()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        self._num_tidied += 1
