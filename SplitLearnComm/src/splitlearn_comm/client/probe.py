"""How many bytes a second a link carries, from a few messages that come back. Pure: the times are handed in."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

_SIZES = (4 << 10, 32 << 10, 192 << 10)
_TRIES = 2
# From here on a difference is the link's and not the machine's, and the next size would take eight times as long.
_ENOUGH_S = 0.05
_BUDGET_S = 0.6


@dataclass(frozen=True, slots=True)
class Echo:
    """How one message came back."""

    seconds: float
    """From sending it until it was back."""
    num_bytes: int
    """Of padding, there and back together."""


def measure_bandwidth() -> Generator[int, Echo | None, float]:
    """Measure the bandwidth of a link: yields how many bytes to send and get back, is sent how that went, or None
    where the server took no more: then what was found up to then has to do.

    The least time of a few tries is what counts: whatever else a machine does makes it longer. Sizes grow until the
    difference to an empty message is clear. At most 0.9 MiB are sent and come back in all; it takes about half a
    second, and longer only over links below 8 KB/s or with answers that take 0.1 s.

    Returns:
        Bytes a second, the mean of both directions (of their times for a byte); infinity if no difference was seen.
    """
    empty_s, spent_s, bandwidth = math.inf, 0.0, math.inf
    for _ in range(_TRIES):
        if (echo := (yield 0)) is None:
            return bandwidth
        empty_s, spent_s = min(empty_s, echo.seconds), spent_s + echo.seconds
    for size in _SIZES:
        took_s = math.inf
        for _ in range(_TRIES):
            if (echo := (yield size)) is None:
                return bandwidth
            took_s, spent_s = min(took_s, echo.seconds), spent_s + echo.seconds
            bandwidth = echo.num_bytes / (took_s - empty_s) if took_s > empty_s else math.inf
            if took_s - empty_s >= _ENOUGH_S:
                return bandwidth
        if spent_s >= _BUDGET_S:
            break
    return bandwidth
