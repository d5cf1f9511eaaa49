"""The figures of a server, as a client that watches them gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Sample(NamedTuple):
    """One figure."""

    name: str
    """As on the metrics page."""
    labels: Mapping[str, str]
    """What tells it from others of the same name; never a session or a client."""
    value: float
    """Of counters, since the server began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsReading:
    """All figures of a server at one moment."""

    time_s: float
    """When they were read, in seconds since 1970 by the server's clock."""
    samples: tuple[Sample, ...]
    """The figures."""

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of this name that have these labels; None where there is none."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found) if found else None


SampleSource = Callable[[], Iterable[Sample]]
"""Tells all figures of a server as they are now. Called in a thread; may wait a moment."""
