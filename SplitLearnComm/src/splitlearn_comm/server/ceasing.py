"""Stateless calls while their server stops: whether any are still to be expected. Pure: times are handed in."""

from __future__ import annotations

import math

QUIET_S = 0.1
"""When no call has come for so long, none is expected."""


class Ceasing:
    """When the last call came.

    Who watches health goes elsewhere as it falls, and a call that comes when gRPC has begun to stop is cancelled:
    so a server that stops goes on answering until they cease.
    """

    def __init__(self) -> None:
        self._last_s = -math.inf

    def __repr__(self) -> str:
        return f"<last call at {self._last_s:.3f}>"

    def called(self, now_s: float) -> None:
        """Note that a call came."""
        self._last_s = now_s

    def wait_s(self, now_s: float, until_s: float) -> float:
        """Seconds to wait before looking again, where calls are waited for until then at most; 0 for no more."""
        return max(0.0, min(self._last_s + QUIET_S, until_s) - now_s)
