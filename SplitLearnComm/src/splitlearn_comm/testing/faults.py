"""What can happen to a message between a client and a server, and when it is to happen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitlearn_comm.testing.direction import Direction


@dataclass(frozen=True)
class Drop:
    """The message is lost, and with it the stream: over TCP nothing is lost alone."""


@dataclass(frozen=True)
class Cut:
    """The message arrives, and the stream breaks right behind it."""


@dataclass(frozen=True)
class Duplicate:
    """The message arrives twice."""


@dataclass(frozen=True)
class Delay:
    """The message arrives late, and all behind it too."""

    delay_s: float
    """By how much."""


Fault = Drop | Cut | Duplicate | Delay
"""One of them."""

Schedule = Mapping[tuple[Direction, int], Fault]
"""What happens to which message: the messages of each direction are counted from 0, over all streams."""


@dataclass(frozen=True, kw_only=True)
class RelayStatistics:
    """What a relay has seen and done up to now."""

    streams: int
    """Streams that clients opened."""
    requests: int
    """Messages that came from clients."""
    replies: int
    """Messages that came from the server."""
    dropped: int
    """Messages dropped, each with its stream."""
    cut: int
    """Streams cut behind a message."""
    duplicated: int
    """Messages handed on twice."""
    delayed: int
    """Messages held back."""
