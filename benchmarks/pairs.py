"""Comparing two things fairly on a noisy machine: in turn, pair by pair, by the median of the ratios."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

CONFIDENCE = 0.95
MIN_PAIRS = 7


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median of paired ratios with an interval that holds the true median with at least 95 %."""

    median: float
    """Median of the ratios."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    num_pairs: int
    """Number of pairs."""

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}] of {self.num_pairs} pairs"


def ratio_of(numerators: list[float], denominators: list[float]) -> Ratio:
    """Return the median ratio of pairs and its interval.

    The interval is between order statistics, which assumes nothing about the distribution (David and Nagaraja,
    Order Statistics, 3rd ed., section 7.1).
    """
    ratios = sorted(n / d for n, d in zip(numerators, denominators, strict=True))
    count = len(ratios)
    assert count >= MIN_PAIRS, f"{count} pairs are too few"
    outside = 0.0
    rank = 0
    while outside + comb(count, rank) / 2**count <= (1 - CONFIDENCE) / 2:
        outside += comb(count, rank) / 2**count
        rank += 1
    low, high = ratios[max(rank - 1, 0)], ratios[count - max(rank, 1)]
    return Ratio(median=statistics.median(ratios), low=low, high=high, num_pairs=count)


def interleaved(
    first: Callable[[], float], second: Callable[[], float], num_pairs: int, warm_ups: int = 1
) -> tuple[list[float], list[float]]:
    """Measure two things in turn; every other pair starts with the second, so that a drift hits both alike."""
    for _ in range(warm_ups):
        first()
        second()
    measured: tuple[list[float], list[float]] = ([], [])
    for pair in range(num_pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        for which in order:
            measured[which].append((first, second)[which]())
    return measured
