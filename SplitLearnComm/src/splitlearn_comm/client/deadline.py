"""Deadlines, as values handed down."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Self

from splitlearn_comm.errors import DeadlineExceededError

LONG_S = 30.0
"""What is usual for a step, from here on, the server is not told."""
AFTER_TIMEOUT = (
    "another call may still be running there, or the server is stuck: ask its health(), or give more time "
    "with timeout_s"
)
"""What to do about a server that did not answer in time."""
LONGEST_S = 1e8
"""Three years: what stands for no bound where a number is wanted that clocks, locks and gRPC can count with."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time by which an answer has to be there."""

    at_s: float
    """On the clock of `time.monotonic`."""
    timeout_s: float
    """How far ahead it was when it was set, for the message."""
    is_told: bool = False
    """Whether the server is to be told of it."""

    @classmethod
    def after(cls, timeout_s: float) -> Self:
        """The deadline so many seconds from now; infinity for no bound.

        Raises:
            ValueError: That is no time in which anything can be done.
        """
        _check(timeout_s)
        return cls(time.monotonic() + timeout_s, timeout_s)

    def remaining_s(self) -> float:
        """Seconds left, at most `LONGEST_S`. Raises `DeadlineExceededError` when none are."""
        left_s = self.at_s - time.monotonic()
        if left_s <= 0:
            raise self.exceeded()
        return min(left_s, LONGEST_S)

    @classmethod
    def of_step(cls, own_s: float | None, usual_s: float) -> Self:
        """The deadline of a step: what the caller gave for it, else the usual.

        The server is told of the first, and of the second where it is short; a bound that is only there for the worst
        case is not worth a field in every message.

        Raises:
            ValueError: What the caller gave is no time in which anything can be done.
        """
        if own_s is None:
            return cls(time.monotonic() + usual_s, usual_s, usual_s < LONG_S)
        _check(own_s)
        return cls(time.monotonic() + own_s, own_s, own_s != math.inf)

    def allows(self, delay_s: float) -> bool:
        """Whether something may still be done after so many seconds."""
        return time.monotonic() + delay_s < self.at_s

    def exceeded(self) -> DeadlineExceededError:
        """The error to raise when it has passed."""
        return DeadlineExceededError(f"no answer within {self.timeout_s:g} s; {AFTER_TIMEOUT}")


def _check(timeout_s: float) -> None:
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise TypeError(f"timeout_s must be a number of seconds, came {timeout_s!r}")
    if not timeout_s > 0:
        raise ValueError(
            f"timeout_s must be greater than zero, came {timeout_s}; leave it out for the client's own, "
            f"or give math.inf for no bound"
        )
