"""How much a single client may have of a server: pure accounts, times handed in."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """What one client may have at most; all are greater than zero.

    A client is a token's name, else a certificate's, else an address: clients behind one address without tokens share
    their limits, and so do all of one machine. The defaults are generous: they stop a client that has gone wild, and
    are to be lowered where one client must not have a server for itself.
    """

    max_sessions: int = 256
    """Sessions open at once."""
    max_calls: int = 1024
    """Calls in flight at once; a session's stream is one."""
    requests_per_s: float = 20_000.0
    """Calls and steps a second, on average; twice as many in the first second."""
    bytes_per_s: float = 4e9
    """Bytes of messages received a second, on average; twice as many in the first second."""
    max_bytes_held: int = 16 << 30
    """Bytes kept for the client at once: the last reply of each session, and what of a tensor has come in chunks."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise ValueError(
                    f"client_limits.{item.name} must be greater than zero, came {getattr(self, item.name)}"
                )


class TokenBucket:
    """Grants amounts, so much a second on average.

    Something is granted whenever nothing is owed, even if it is more than there is; what is owed has to be waited for.
    So one large message passes, and over `t` seconds at most `burst + rate * t` and one more amount are granted.

    Args:
        rate: Granted per second.
        burst: Saved up at most, and at first.
        now: The time, in seconds of any clock.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until something is granted; 0 if it is now."""
        self._level = min(self._burst, self._level + self._rate * max(0.0, now - self._at))
        self._at = now
        return max(0.0, -self._level / self._rate)

    def take(self, amount: float) -> None:
        """Book what was granted."""
        self._level -= amount

    def is_full(self, now: float) -> bool:
        """Whether as much is saved up as can be."""
        return self.wait_s(now) == 0.0 and self._level >= self._burst
