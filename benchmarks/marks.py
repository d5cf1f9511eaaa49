"""What a ratio has to reach, and whether it was shown that it does."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.pairs import Ratio


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A bound of a ratio."""

    side: Literal["at most", "at least"]
    """Which side of the bound is good."""
    value: float
    """The bound itself; it meets itself."""

    def __str__(self) -> str:
        return f"mark {self.side} {self.value:g}"

    def verdict(self, ratio: Ratio) -> Literal["met", "MISSED", "not shown"]:
        """Return what the median says, unless the interval is wider than the mark is away from 1.

        Such an interval could not tell a ratio at the mark from one at 1, where both sides are alike; but one that lies
        wholly on the wrong side says enough.
        """
        best = ratio.low if self.side == "at most" else ratio.high
        if best > self.value if self.side == "at most" else best < self.value:
            return "MISSED"
        if ratio.high - ratio.low > abs(self.value - 1):
            return "not shown"
        is_met = ratio.median <= self.value if self.side == "at most" else ratio.median >= self.value
        return "met" if is_met else "MISSED"

    def on(self, ratio: Ratio) -> str:
        """Return the ratio, this mark and the verdict, to be printed."""
        return f"{ratio}, {self}: {self.verdict(ratio)}"


def at_most(value: float) -> Mark:
    """Return the mark of what should be small."""
    return Mark(side="at most", value=value)


def at_least(value: float) -> Mark:
    """Return the mark of what should be large."""
    return Mark(side="at least", value=value)
