"""When to try again, and how long to wait before."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import is_retried
from splitlearn_comm.errors import CommError, ResourceExhaustedError

T = TypeVar("T")


class RetryStrategy(ABC):
    """Decides how often something is tried again when the server cannot be reached, or says when to come back.

    Only what `RETRY_RULES` names is retried: every other error would come again.
    """

    @abstractmethod
    def next_delay_s(self, attempt: int, draw: float = 0.5) -> float | None:
        """Seconds to wait after a failure.

        Args:
            attempt: Which attempt failed, from 1.
            draw: A random number in [0, 1), for jitter; 0.5 for none.

        Returns:
            The delay, None to give up.
        """

    def delay_after(self, error: CommError, attempt: int, deadline: Deadline | None = None) -> float:
        """Seconds to wait after this failure; where the server said how long, up to twice that: all who were told the
        same must not come back at once.

        What a server said when to ask again is not an attempt that failed: it is asked as often as the deadline allows,
        unless nothing is to be tried a second time at all. Without a deadline the attempts bound that too.

        Args:
            error: The failure.
            attempt: Which attempt it was, from 1.
            deadline: When all has to be over; None if there is no hurry.

        Raises:
            CommError: The failure: it would come again, was the last attempt, or the deadline would pass.
        """
        draw = random.random()
        attempt = attempt if _counts(error, deadline) else 1
        delay_s = self.next_delay_s(attempt, draw) if is_retried(error) else None
        if delay_s is not None and isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None:
            spread_s = error.retry_after_s * (1 + draw)
            delay_s = spread_s if deadline is None or deadline.allows(spread_s) else error.retry_after_s
        if delay_s is None or (deadline is not None and not deadline.allows(delay_s)):
            raise error
        return delay_s

    def execute(
        self, func: Callable[[], T], deadline: Deadline | None = None, *, pause: Callable[[float], None] = time.sleep
    ) -> T:
        """Call `func` until it does not fail, waiting in between; raises the last failure.

        Args:
            func: What to do.
            deadline: Until when.
            pause: Waits for so many seconds; what it raises ends all.
        """
        attempt = 1
        while True:
            try:
                return func()
            except CommError as error:
                pause(self.delay_after(error, attempt, deadline))
                attempt += _counts(error, deadline)

    async def execute_async(
        self,
        func: Callable[[], Awaitable[T]],
        deadline: Deadline | None = None,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> T:
        """Await `func` until it does not fail, waiting in between, as `execute` does; raises the last failure."""
        attempt = 1
        while True:
            try:
                return await func()
            except CommError as error:
                await pause(self.delay_after(error, attempt, deadline))
                attempt += _counts(error, deadline)


@dataclass(frozen=True)
class ExponentialBackoff(RetryStrategy):
    """Wait longer after each failure."""

    initial_delay: float = 0.1
    """Seconds after the first failure."""
    max_delay: float = 2.0
    """Seconds at most."""
    multiplier: float = 2.0
    """How many times longer than the time before."""
    max_attempts: int = 4
    """Attempts in all, the first included; refusals that say when to come back count only where there is but one."""
    jitter: float = 0.2
    """Fraction of the delay by which it varies to either side, so that clients do not all come back at once."""

    def __post_init__(self) -> None:
        if self.initial_delay < 0 or self.max_delay < 0 or self.multiplier < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(f"delays must be >= 0, multiplier >= 1 and jitter in [0, 1], came {self}")
        _check_attempts(self.max_attempts)

    def next_delay_s(self, attempt: int, draw: float = 0.5) -> float | None:
        """`initial_delay * multiplier ** (attempt - 1)`, at most `max_delay`, give or take `jitter`."""
        if attempt >= self.max_attempts:
            return None
        # From 64 doublings on any delay is at its maximum, and the power would overflow somewhere.
        delay_s = min(self.max_delay, self.initial_delay * self.multiplier ** min(attempt - 1, 64))
        return delay_s * (1 + self.jitter * (2 * draw - 1))


@dataclass(frozen=True)
class FixedDelay(RetryStrategy):
    """Wait equally long after each failure."""

    delay: float = 1.0
    """Seconds."""
    max_attempts: int = 3
    """Attempts in all, the first included; 1 never tries again."""

    def __post_init__(self) -> None:
        if self.delay < 0:
            raise ValueError(f"delay must be >= 0, came {self.delay}")
        _check_attempts(self.max_attempts)

    def next_delay_s(self, attempt: int, draw: float = 0.5) -> float | None:
        """`delay`, until `max_attempts` are made."""
        return self.delay if attempt < self.max_attempts else None


def _counts(error: CommError, deadline: Deadline | None) -> bool:
    """Whether a failure is one of the attempts that there are."""
    is_told = isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None
    return not is_told or deadline is None


def _check_attempts(max_attempts: int) -> None:
    if max_attempts < 1:
        raise ValueError(f"max_attempts must be at least 1, came {max_attempts}")


ONCE = FixedDelay(delay=0.0, max_attempts=1)
"""Never again."""
