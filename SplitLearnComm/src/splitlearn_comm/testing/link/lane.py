"""When the bytes that enter one direction of a link come out of it. No sockets, and the clock is the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from splitlearn_comm.testing.link.quality import LinkQuality

MAX_PIECE_BYTES = 64 * 1024
_PIECE_S = 0.01
"""A piece takes no longer than this to send, so that a change of quality shows soon and connections take turns."""


@dataclass(frozen=True, slots=True)
class Passage:
    """The times of one piece."""

    sent_at_s: float
    """When its last byte has left, and the next piece may go."""
    arrives_at_s: float
    """When it is at the other end."""


class Lane:
    """One direction of a link, with all its connections.

    Bytes are sent one after the other at the link's bandwidth, each piece beginning when the one before has left, and
    are then underway for the latency: what queues up waits longer, as in front of any modem.

    Args:
        quality: How good it is; may be set anew at any time, for what is sent from then on.
        draw: Gives random numbers in [0, 1), for jitter.
    """

    def __init__(self, quality: LinkQuality, draw: Callable[[], float]) -> None:
        self.quality = quality
        self._draw = draw
        self._free_at_s = -math.inf

    @property
    def piece_bytes(self) -> int:
        """How many bytes to send at once."""
        return max(1, int(min(MAX_PIECE_BYTES, self.quality.bytes_per_s * _PIECE_S)))

    def send(self, num_bytes: int, now_s: float) -> Passage:
        """Send a piece now, or as soon as the pieces before it have left."""
        begins_at_s = max(now_s, self._free_at_s)
        self._free_at_s = begins_at_s + num_bytes / self.quality.bytes_per_s
        underway_s = self.quality.latency_s + self.quality.jitter_s * self._draw()
        return Passage(self._free_at_s, self._free_at_s + underway_s)
