"""What is learnt from the clock: what forwards cost, and how soon sessions come back. Pure: times are handed in."""

import statistics
from collections import deque

from splitlearn_core.engine.limits import EngineLimits

WINDOW = 9
"""Joined forwards that are remembered. Their median counts: one that something else on the machine held up says nothing
about the next, and must not make the chunk behind it longer too."""
WEIGHT = 0.3
"""Of the newest measurement in an average."""
GUESS = 8
"""Before anything is known of the others' steps a chunk is this part of the longest."""
LATENESS = 2.0
"""A session that takes more than this times its usual time to come back is not waited for any more."""
SLACK_S = 0.001
"""Lateness of a session that usually comes back at once."""


class Pace:
    """Averages of what was measured."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._joined_s: deque[float] = deque(maxlen=WINDOW)
        self.token_s: float | None = None
        """What a token of a prompt costs; None before the first."""
        self._num_waited = 0

    @property
    def joined_s(self) -> float | None:
        """What a joined forward costs; None before the first."""
        return statistics.median(self._joined_s) if self._joined_s else None

    def joined_ended(self, seconds: float, *, has_prompts: bool) -> None:
        """Count a joined forward, for which prompts had to wait or not."""
        self._joined_s.append(seconds)
        self._num_waited = self._num_waited + 1 if has_prompts else 0

    def prompt_ended(self, size: int, seconds: float) -> None:
        """Count a chunk of `size` tokens."""
        each_s = seconds / size
        self.token_s = each_s if self.token_s is None else mixed(self.token_s, each_s)
        self._num_waited = 0

    def chunk_size(self, *, is_alone: bool) -> int:
        """Return how many tokens, rows times length, the next chunk of a prompt may have."""
        if is_alone:
            return self._limits.max_tokens
        joined_s = self.joined_s
        if joined_s is None:
            return max(self._limits.min_chunk_tokens, self._limits.max_tokens // GUESS)
        if not self.token_s:
            return self._limits.min_chunk_tokens
        target_s = self._limits.chunk_share * joined_s * max(1, self._num_waited)
        return min(self._limits.max_tokens, max(self._limits.min_chunk_tokens, int(target_s / self.token_s)))

    def patience_s(self) -> float:
        """Return how long steps may wait for others."""
        return self._limits.wait_share * (self.joined_s or 0.0)


class Rhythm:
    """When a session's last step ended, and how long it usually takes until its next comes."""

    def __init__(self) -> None:
        self.ended_s: float | None = None
        self.pause_s: float | None = None

    def came(self, now_s: float) -> None:
        """Count a step that has come."""
        if self.ended_s is not None:
            pause_s = max(0.0, now_s - self.ended_s)
            self.pause_s = pause_s if self.pause_s is None else mixed(self.pause_s, pause_s)

    def ended(self, now_s: float) -> None:
        """Count a step that has ended."""
        self.ended_s = now_s

    def expected_s(self) -> float | None:
        """Return when the next step should come; None when that is not known."""
        return None if self.ended_s is None or self.pause_s is None else self.ended_s + self.pause_s

    def overdue_s(self) -> float | None:
        """Return when to give up waiting for the next step."""
        if self.ended_s is None or self.pause_s is None:
            return None
        return self.ended_s + LATENESS * self.pause_s + SLACK_S


def mixed(average: float, measured: float) -> float:
    """Return the average after one more measurement."""
    return (1 - WEIGHT) * average + WEIGHT * measured
