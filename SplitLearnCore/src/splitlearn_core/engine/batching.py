"""How sessions of an architecture may share a forward: what the table says, and a trial for what it does not hold."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from transformers import PreTrainedConfig

from splitlearn_core.split.layers import decoder_config


class Joining(Enum):
    """How steps of several sessions share a forward."""

    RAGGED = "ragged"
    """Every session's keys are used where they lie; all but attention is run for all rows at once."""
    PADDED = "padded"
    """Keys and values are copied together, padded to the longest session."""
    ALONE = "alone"
    """Not at all: the sessions' steps run one by one."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """What is exact for one architecture."""

    joining: Joining
    """How steps of several sessions share a forward."""
    alone_because: str | None = None
    """Why they do not, as a clause; None where they do."""
    whole_because: str | None = None
    """Why a prompt has to come in one piece, as a clause; None where it may come in chunks."""

    @property
    def can_chunk(self) -> bool:
        """Whether a prompt may come in chunks."""
        return self.whole_because is None


ROPE_OF_LONGEST: Final = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies follow the largest position of a forward."""

ROPE_REASON: Final = "its rotary frequencies follow the longest row of a forward"


def follows_longest_row(config: PreTrainedConfig) -> bool:
    """Whether the result of one row depends on how long others are, by the configuration of a checkpoint."""
    decoder = decoder_config(config)
    given = getattr(decoder, "rope_parameters", None) or getattr(decoder, "rope_scaling", None) or {}
    nested = [given, *(value for value in given.values() if isinstance(value, dict))]
    return any(parameters.get("rope_type") in ROPE_OF_LONGEST for parameters in nested)
