"""When a server that fails is left alone, and when it is tried again. Pure: the time is handed in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CircuitBreaker:
    """Closed while a server answers; open, for longer each time, while it does not; then one try decides.

    Source of the pattern: M. Nygard, Release It!, 2nd ed., chapter 5.
    """

    threshold: int = 3
    """Failures in a row after which the server is left alone."""
    cool_down_s: float = 0.2
    """How long, the first time."""
    max_cool_down_s: float = 5.0
    """How long at most; it doubles with each failure."""
    failures: int = 0
    """In a row, up to now."""
    _closed_at_s: float = 0.0

    def __repr__(self) -> str:
        return f"<{self.failures} failures in a row, left alone until {self._closed_at_s:.3f}>"

    def may_try(self, now_s: float) -> bool:
        """Whether the server may be asked now."""
        return now_s >= self._closed_at_s

    def closed_at_s(self) -> float:
        """When it may be asked again."""
        return self._closed_at_s

    def succeeded(self) -> None:
        """Note an answer of any kind."""
        self.failures, self._closed_at_s = 0, 0.0

    def failed(self, now_s: float) -> None:
        """Note that the server could not be reached; while it is left alone anyway, that is no news."""
        if not self.may_try(now_s):
            return
        self.failures += 1
        if self.failures >= self.threshold:
            doublings = min(self.failures - self.threshold, 32)
            self._closed_at_s = now_s + min(self.cool_down_s * 2**doublings, self.max_cool_down_s)


@dataclass
class RetryBudget:
    """Lets calls be repeated only while most of them succeed, so that clients do not bury a server that struggles.

    As gRPC's retry throttling (gRFC A6): a failure takes a token, a success gives some back, and at half of them
    nothing is repeated any more. First attempts are always made.
    """

    max_tokens: float = 100.0
    """When all is well."""
    tokens_per_success: float = 1.0
    """What a success gives back."""
    tokens: float = 100.0
    """Now."""

    def may_retry(self) -> bool:
        """Whether a failed call may be made again."""
        return self.tokens > self.max_tokens / 2

    def succeeded(self) -> None:
        """Note a success."""
        self.tokens = min(self.max_tokens, self.tokens + self.tokens_per_success)

    def failed(self) -> None:
        """Note a failure."""
        self.tokens = max(0.0, self.tokens - 1.0)
