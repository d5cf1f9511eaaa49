"""One direction of the link with what can be done to it while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from splitlearn_comm.testing.link.lane import Lane


class Way:
    """A lane that can hang, that counts, and that has the link cut when enough has gone through.

    Args:
        lane: Its timing.
        cut: Called when what was allowed is through.
    """

    def __init__(self, lane: Lane, cut: Callable[[], None]) -> None:
        self.lane = lane
        self.is_flowing = asyncio.Event()
        self.is_flowing.set()
        self.delivered_bytes = 0
        self._cut = cut
        self._left_bytes: int | None = None

    def stall(self) -> None:
        """Let nothing through."""
        self.is_flowing.clear()

    def resume(self) -> None:
        """Let through again."""
        self.is_flowing.set()

    def cut_after(self, num_bytes: int) -> None:
        """Let only so many more bytes through."""
        self._left_bytes = num_bytes

    def allowed(self, data: bytes) -> bytes:
        """As much of it as may still go through."""
        return data if self._left_bytes is None else data[: self._left_bytes]

    def count(self, num_bytes: int) -> None:
        """Note that so many bytes were delivered, and cut the link if they were the last."""
        self.delivered_bytes += num_bytes
        if self._left_bytes is not None:
            self._left_bytes -= num_bytes
            if self._left_bytes <= 0:
                self._left_bytes = None
                self._cut()
