"""What an engine did, in plain numbers: added up where it runs, read where they are shown."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from splitlearn_core.engine.steps import Batch, BatchKind

# fmt: off
WAIT_EDGES_S = (
    0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.008, 0.013, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2, 0.3, 0.5, 0.8, 1.3, 2,
    3, 5, 8, 13, 20, 30,
)
# fmt: on
"""Edges of histograms of waiting and of forwards, in seconds; each about half as much again as the one before."""
ROWS_EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
"""Edges of the histogram of the rows of a forward."""


class Distribution:
    """How often which values were seen.

    Args:
        edges: Upper edges of the buckets, ascending; what is above all of them is counted too.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self.counts = [0] * (len(self.edges) + 1)
        """Values in each bucket, those above all edges last; not cumulated."""
        self.sum = 0.0
        """Of all values."""

    def add(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.sum += value

    @property
    def num_values(self) -> int:
        """How many there were."""
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A distribution as it was at one moment."""

    edges: tuple[float, ...]
    """Upper edges of the buckets."""
    counts: tuple[int, ...]
    """Values in each bucket, those above all edges last."""
    sum: float
    """Of all values."""

    @classmethod
    def of(cls, distribution: Distribution) -> Self:
        """Return what was counted up to now."""
        return cls(edges=distribution.edges, counts=tuple(distribution.counts), sum=distribution.sum)


@dataclass(frozen=True, kw_only=True)
class TrainingUse:
    """What trainings take at one moment."""

    num_trainings: int = 0
    """Clients that train."""
    num_passes: int = 0
    """Forwards whose backward is waited for."""
    num_bytes: int = 0
    """What is kept for all of them."""
    limit_bytes: int | None = None
    """What may be kept; None for no limit."""


@dataclass(frozen=True, kw_only=True)
class EngineReading:
    """What one model did up to now, and what it holds."""

    queue_s: Counted
    """Seconds that steps waited, from when they were asked for until their forward began."""
    forward_s: Counted
    """Seconds of forwards."""
    rows: Counted
    """Rows of forwards."""
    num_tokens: int
    """Tokens, rows times length, that went through the layers."""
    num_sessions: int
    """Sessions open."""
    cached_tokens: int
    """Tokens, rows times length, in their caches."""
    kv_bytes: int
    """What these take."""
    kv_limit_bytes: int | None = None
    """What they may take; None for no limit."""
    trainings: TrainingUse = TrainingUse()
    """What those who train take."""

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for name in ("queue_s", "forward_s", "rows"):
            counted = values[name]
            values[name] = Counted(edges=tuple(counted["edges"]), counts=tuple(counted["counts"]), sum=counted["sum"])
        return cls(**values | {"trainings": TrainingUse(**values["trainings"])})


@dataclass(slots=True)
class EngineFigures:
    """Adds up the forwards of an engine: `on_batch=` of a `TrunkEngine`, in the thread of its turns.

    Other threads may read; what they see of one forward may then be a number behind another.
    """

    queue_s: Distribution = field(default_factory=lambda: Distribution(WAIT_EDGES_S))
    forward_s: Distribution = field(default_factory=lambda: Distribution(WAIT_EDGES_S))
    rows: Distribution = field(default_factory=lambda: Distribution(ROWS_EDGES))
    num_tokens: int = 0

    def add(self, batch: Batch, began_s: float, ended_s: float) -> None:
        """Count a batch that ran from one moment to the other."""
        if batch.kind is BatchKind.OTHER:
            return
        self.forward_s.add(ended_s - began_s)
        self.rows.add(batch.num_rows)
        self.num_tokens += batch.size
        for chunk in batch.chunks:
            if not chunk.begin:
                self.queue_s.add(began_s - chunk.step.arrival_s)

    def reading(
        self,
        *,
        num_sessions: int,
        cached_tokens: int,
        kv_bytes: int,
        kv_limit_bytes: int | None,
        trainings: TrainingUse,
    ) -> EngineReading:
        """Return what was counted up to now, beside what is held."""
        return EngineReading(
            queue_s=Counted.of(self.queue_s),
            forward_s=Counted.of(self.forward_s),
            rows=Counted.of(self.rows),
            num_tokens=self.num_tokens,
            num_sessions=num_sessions,
            cached_tokens=cached_tokens,
            kv_bytes=kv_bytes,
            kv_limit_bytes=kv_limit_bytes,
            trainings=trainings,
        )
