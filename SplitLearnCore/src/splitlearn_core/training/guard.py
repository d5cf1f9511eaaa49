"""What a training does about gradients that make no sense: decided from norms, purely.

Norms are watched where gradients cross the cuts, so that whoever reads the log learns in which part they went wrong.
Skipping such updates is what loss scalers do (Micikevicius et al., "Mixed Precision Training", 2018); a norm far above
the median of those before is what large runs skip (Chowdhery et al., "PaLM", 2022, section 5.1).
"""

import math
import statistics
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from splitlearn_core.errors import TrainingError

LOSS = "in the loss"
TOP_ENTRY = "before the Top"
TRUNK = "in the Trunk"
BOTTOM_EXIT = "behind the Bottom"
CLIENT = "in Bottom or Top"


class Reaction(StrEnum):
    """What is done about an update whose gradients make no sense."""

    SKIP = "skip"
    """Neither side steps; the next batch comes."""
    LOWER_RATE = "lower_rate"
    """The same, and all rates are lower from then on."""
    STOP = "stop"
    """An error; weights and optimizers are as before the update."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is watched, and what is done.

    Raises:
        TrainingError: a value that cannot be.
    """

    on_nonfinite: Literal["skip", "lower_rate", "stop"] = "skip"
    """About gradients with NaN or infinity in them."""
    on_spike: Literal["skip", "lower_rate", "stop"] | None = None
    """About a norm at a cut that is `spike_factor` times the median of those before; None to look at none. Leave it out
    where a scaler changes the scale of the loss."""
    spike_factor: float = 10.0
    """Times the median."""
    window: int = 50
    """Updates whose norms make the median; none is taken for a spike before a fifth of them is there."""
    lower_rate_by: float = 0.5
    """By what all rates are multiplied, each time."""
    max_in_a_row: int = 10
    """Updates skipped one after the other; one more is an error, because nothing is learned any more."""

    def __post_init__(self) -> None:
        reactions = tuple(Reaction)
        checks = {
            f"on_nonfinite is one of {', '.join(reactions)}": self.on_nonfinite in reactions,
            f"on_spike is None or one of {', '.join(reactions)}": self.on_spike is None or self.on_spike in reactions,
            "spike_factor is above 1": self.spike_factor > 1,
            "window is at least 5": self.window >= 5,
            "lower_rate_by is between 0 and 1": 0 < self.lower_rate_by < 1,
            "max_in_a_row is at least 0": self.max_in_a_row >= 0,
        }
        for rule, holds in checks.items():
            if not holds:
                raise TrainingError(f"{rule}; got {getattr(self, rule.partition(' ')[0])!r}")


class Finding(NamedTuple):
    """What is wrong with the gradients of an update."""

    kind: str
    """`nonfinite` or `spike`: what is counted."""
    sentence: str
    """For a log, with numbers."""
    reaction: Reaction
    """What is done about it."""


class Guard:
    """Watches the updates of one run, one after the other.

    Args:
        config: what is watched, and what is done.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        """Updates that were not done, by what was wrong."""
        self.rate_factor = 1.0
        """By what all rates are multiplied now."""
        self._norms: dict[str, float] = {}
        self._before: dict[str, deque[float]] = {}
        self._in_a_row = 0

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items()) or "nothing"
        return f"<guard: {counts} so far, {self._in_a_row} in a row, rates times {self.rate_factor:g}>"

    def see(self, where: str, norm: float) -> None:
        """Note the norm of a gradient of the update that is being prepared; of several passes the largest counts."""
        before = self._norms.get(where, 0.0)
        self._norms[where] = norm if norm > before or math.isnan(norm) else before  # NaN stays, whatever follows

    def find(self, *, is_finite: bool) -> Finding | None:
        """Judge the update that was prepared; None where nothing is wrong with it. Begins the next.

        Args:
            is_finite: whether all gradients that are there are finite. A scaler may have thrown away what was seen.

        Raises:
            TrainingError: too many in a row, or the configuration says so.
        """
        finding = self._finding(is_finite)
        norms, self._norms = self._norms, {}
        if finding is None:
            self._in_a_row = 0
            for where, norm in norms.items():
                if math.isfinite(norm):
                    self._before.setdefault(where, deque(maxlen=self.config.window)).append(norm)
            return None
        self._count(finding)
        return finding

    def _finding(self, is_finite: bool) -> Finding | None:
        if not is_finite:
            where = next((w for w, norm in self._norms.items() if not math.isfinite(norm)), CLIENT)
            return Finding("nonfinite", f"NaN or infinity {where}", Reaction(self.config.on_nonfinite))
        return self._spike()

    def _spike(self) -> Finding | None:
        if self.config.on_spike is None:
            return None
        for where, norm in self._norms.items():
            before = self._before.get(where, ())
            if len(before) < self.config.window / 5:
                continue
            median = statistics.median(before)
            if norm > self.config.spike_factor * median:
                sentence = f"norm {norm:.3g} {where}, the median of the {len(before)} before is {median:.3g}"
                return Finding("spike", sentence, Reaction(self.config.on_spike))
        return None

    def _count(self, finding: Finding) -> None:
        if finding.reaction is Reaction.STOP:
            raise TrainingError(
                f"gradients that make no sense: {finding.sentence}; nothing was stepped, on either side"
            )
        self.counts[finding.kind] += 1
        self._in_a_row += 1
        if self._in_a_row > self.config.max_in_a_row:
            raise TrainingError(
                f"{self._in_a_row} updates in a row made no sense, the last for {finding.sentence}; none of them was "
                f"done: look at the data and at the loss of one batch, lower the rate, or raise max_in_a_row"
            )
        if finding.reaction is Reaction.LOWER_RATE:
            self.rate_factor *= self.config.lower_rate_by

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep, as JSON has it."""
        before = {where: list(norms) for where, norms in self._before.items()}
        return {"counts": dict(self.counts), "rate_factor": self.rate_factor, "norms": before, "row": self._in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.counts = Counter(state["counts"])
        self.rate_factor = state["rate_factor"]
        self._before = {where: deque(norms, maxlen=self.config.window) for where, norms in state["norms"].items()}
        self._in_a_row = state["row"]
        self._norms = {}
