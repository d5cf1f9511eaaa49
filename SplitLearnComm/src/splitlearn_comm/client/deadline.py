"""Deadlines, as values handed down."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from splitlearn_comm.errors import DeadlineExceededError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time by which an answer has to be there."""

    at_s: float
    """On the clock of `time.monotonic`."""
    timeout_s: float
    """How far ahead it was when it was set, for the message."""

    @classmethod
    def after(cls, timeout_s: float) -> Self:
        """The deadline so many seconds from now."""
        return cls(time.monotonic() + timeout_s, timeout_s)

    def remaining_s(self) -> float:
        """Seconds left. Raises `DeadlineExceededError` when none are."""
        left_s = self.at_s - time.monotonic()
        if left_s <= 0:
            raise self.exceeded()
        return left_s

    def allows(self, delay_s: float) -> bool:
        """Whether something may still be done after so many seconds."""
        return time.monotonic() + delay_s < self.at_s

    def exceeded(self) -> DeadlineExceededError:
        """The error to raise when it has passed."""
        return DeadlineExceededError(
            f"no answer within {self.timeout_s:g} s; the server may be busy or stuck: ask its health(), "
            f"or give more time with timeout_s"
        )
