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
IN_USE = "in_use_bytes"


class MallocInfo(ctypes.Structure):
    """What glibc's `mallinfo2` tells; of all arenas together."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def bytes_in_use() -> int:
    """Bytes that somebody has allocated and not freed; 0 where the C library does not tell."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if tell is None:
        return 0
    tell.restype = MallocInfo
    told = tell()
    return int(told.uordblks) + int(told.hblkhd)


class SoakedHost(RunningSumHost):
    """Says in its information how many sessions it keeps, how often its process has tidied up, and what it had then.

    At SIGUSR1 the process collects garbage and gives free memory back to the system, so that what it still has is what
    somebody holds: glibc keeps tens of megabytes of freed messages otherwise, more or less of them by chance.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_tidied = self._in_use_bytes = 0
        signal.signal(signal.SIGUSR1, self._tidy)

    def get_info(self) -> ServiceInfo:
        extra = {SESSIONS: str(self.num_sessions), TIDIED: str(self._num_tidied), IN_USE: str(self._in_use_bytes)}
        return replace(super().get_info(), extra=extra)

    def _tidy(self, number: int, frame: FrameType | None) -> None:
        gc.collect()
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        self._in_use_bytes = bytes_in_use()
        self._num_tidied += 1
