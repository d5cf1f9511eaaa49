"""What is said in a session that trains.

Tensor shapes: B rows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Options = Mapping[str, Any]
"""What JSON can say: numbers, strings, truth values, None, lists."""

STATE_PART_BYTES = 32 << 20
"""Of a training's state, what goes into one message, its last tensor aside."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that an optimizer treats alike."""

    names: tuple[str, ...]
    """Names of parameters."""
    options: Options
    """`lr`, `weight_decay`, …"""


@dataclass(frozen=True)
class StartTraining:
    """Make the session one of training; the first step of it."""

    adapter: Options | None = None
    """Fields of a `peft.LoraConfig`, targets by their full names; None for no adapter."""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """First values of the adapter's parameters, by name."""
    full: bool = False
    """Train the parameters themselves, of a private copy."""
    optimizer: str = ""
    """Name of a class of `torch.optim`; empty where nothing trains."""
    groups: Sequence[ParameterGroup] = ()
    """Which parameters train."""
    recompute: float = 0.0
    """Share of the layers, 0 to 1, of which only what enters them is kept between forward and backward."""
    name: str = ""
    """What sessions and calls of this client may name as their adapter while the session lives; empty for nothing."""


@dataclass(frozen=True)
class ForwardPass:
    """Run the layers in train mode and keep what the backward needs."""

    pass_id: int
    """Names the pass; higher than those before."""
    hidden: torch.Tensor
    """[B, T, H], floating."""
    attention_mask: torch.Tensor | None = None
    """[B, T], bool or integer; None for no padding."""
    position_ids: torch.Tensor | None = None
    """[B, T], integer; None to count from 0."""
    seed: int = 0
    """What the layers draw their dropout from."""
    seed_step: int = 0
    """Number of the forward."""
    has_backward: bool = True
    """Whether a backward may follow; if not, nothing is kept."""
    autocast: torch.dtype | None = None
    """float16 or bfloat16: what the layers run under, in mixed precision; None for none."""


@dataclass(frozen=True)
class BackwardPass:
    """Take a gradient back through the layers."""

    pass_id: int
    """That of the forward."""
    gradient: torch.Tensor
    """[B, T, H]: of what the forward returned."""
    wants_gradient: bool = True
    """Whether the gradient of what went in is wanted."""
    accumulate: bool = True
    """Add to the gradients that are there, instead of clearing them first."""
    scale: float | None = None
    """What the gradients that are there are multiplied by before; None for nothing."""


@dataclass(frozen=True)
class Update:
    """One step of the optimizer."""

    update_id: int
    """One more than the last."""
    options: Sequence[Options]
    """Of each group, as they are now."""
    scale: float | None = None
    """What all gradients are multiplied by before; None for nothing."""


@dataclass(frozen=True)
class TrainingState:
    """What was trained, and the optimizer's state; or a part of it."""

    update_id: int
    """Updates done."""
    tensors: Mapping[str, torch.Tensor]
    """By name."""
    num_tensors: int
    """How many there are in all."""


@dataclass(frozen=True)
class ReadTraining:
    """Give out what was trained."""

    first: int = 0
    """Number of the first tensor that is wanted."""


@dataclass(frozen=True)
class WriteTraining:
    """Put in what was given out."""

    state: TrainingState
    """A part of it, in the order in which it was given out; the last one makes it count."""


@dataclass(frozen=True)
class PublishAdapter:
    """Keep a copy of the adapter that trains, as it is now, beyond the session."""

    name: str
    """Under what this client's sessions and calls find it; what was published under it before is freed."""


@dataclass(frozen=True)
class FreeAdapter:
    """Free an adapter that was published, in any session."""

    name: str
    """Its name."""


TrainingAction = (
    StartTraining | ForwardPass | BackwardPass | Update | ReadTraining | WriteTraining | PublishAdapter | FreeAdapter
)
"""What a step of a session of training does."""


@dataclass(frozen=True)
class Trained:
    """What a host returns of a backward pass, or of the training's state."""

    gradient: torch.Tensor | None = None
    """[B, T, H]; None where nobody wanted it."""
    norms: Sequence[float] = ()
    """Norm of the gradient of each parameter that trains."""
    state: TrainingState | None = None
    """To `ReadTraining`."""
