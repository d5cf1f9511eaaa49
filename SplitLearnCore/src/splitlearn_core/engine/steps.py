"""What the scheduler is told of a step, and what it says to run next."""

from dataclasses import dataclass
from enum import Enum


class StepKind(Enum):
    """What a step asks for."""

    FORWARD = "forward"
    """Run tokens through the layers."""
    OTHER = "other"
    """Change the cache without a forward: crop, reorder, start recording."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a session, as far as scheduling needs to know it."""

    ticket: int
    """Names the step; chosen by whoever submits it, never twice."""
    session_id: str
    """Its session."""
    client: str
    """Who shares with others: sessions of one client count as one."""
    kind: StepKind
    """What it asks for."""
    arrival_s: float
    """When it was asked for, on the clock of all times here; that may be before it was submitted."""
    num_rows: int = 1
    """Rows of its hidden states."""
    num_tokens: int = 0
    """Tokens of each row; 0 without a forward."""
    can_join: bool = True
    """Whether it may share a forward with steps of other sessions."""
    can_be_cut: bool = True
    """Whether its tokens may come in several forwards."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokens `[begin, end)` of a step."""

    step: Step
    """The step."""
    begin: int
    """First token."""
    end: int
    """Behind the last token."""

    @property
    def is_last(self) -> bool:
        """Whether the step is done with it."""
        return self.end == self.step.num_tokens

    @property
    def size(self) -> int:
        """Rows times tokens."""
        return self.step.num_rows * (self.end - self.begin)


class BatchKind(Enum):
    """Why these chunks run together."""

    JOINED = "joined"
    """Short steps of equal length, of one session or several."""
    PROMPT = "prompt"
    """A chunk of a long step, alone."""
    OTHER = "other"
    """Steps without a forward."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to run next."""

    kind: BatchKind
    """Why these."""
    chunks: tuple[Chunk, ...]
    """Of different sessions each; for JOINED of equal length."""

    @property
    def num_rows(self) -> int:
        """Rows of all chunks."""
        return sum(chunk.step.num_rows for chunk in self.chunks)

    @property
    def size(self) -> int:
        """Rows times tokens of all chunks."""
        return sum(chunk.size for chunk in self.chunks)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to run yet: steps that are there wait for others that are about to come."""

    until_s: float
    """When to ask again if nothing is submitted before."""
