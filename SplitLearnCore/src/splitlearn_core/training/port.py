"""What a client needs of a trunk that it trains, wherever that lives.

Tensor shapes: B rows, T tokens, P cached tokens, H hidden size; N trainable parameters of the trunk.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from splitlearn_core.errors import TrainingError
from splitlearn_core.training.seeding import DropoutSeed


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that an optimizer treats alike."""

    names: tuple[str, ...]
    """Names of trainable parameters of the trunk."""
    options: Mapping[str, Any]
    """`lr`, `weight_decay`, …: what the optimizer's class takes for a group; numbers, booleans, strings, lists."""


@dataclass(frozen=True, kw_only=True)
class TrunkTrainingSpec:
    """What of a trunk trains, and how. Nothing, by default: then only gradients go through."""

    lora: Mapping[str, Any] | None = None
    """Fields of a `peft.LoraConfig`, with the targets named one by one; None for no adapter."""
    tensors: Mapping[str, torch.Tensor] | None = None
    """First values of the adapter, by the names of its parameters."""
    full: bool = False
    """Train all parameters of a private copy instead."""
    optimizer: str = ""
    """Name of a class of `torch.optim`; empty where nothing trains."""
    groups: Sequence[ParameterGroup] = ()
    """Which parameters train, in groups."""
    recompute: float = 0.0
    """Share of the layers, 0 to 1, that keep only what enters them until the backward; the rest is computed again."""


class BackwardResult(NamedTuple):
    """What comes back from a backward."""

    gradient_BTH: torch.Tensor | None
    """Gradient of what went into the trunk; None where nobody wanted it."""
    norms_N: torch.Tensor
    """Norm of the gradient of each trainable parameter, all passes since the last clearing together."""


class TrunkTraining(ABC):
    """A trunk that is being trained, or through which gradients go to train others."""

    codecs: Mapping[str, str] = {}
    """Through what its tensors go on the way, by role and direction; nothing where there is no way or they go raw."""
    network_s: float | None = None
    """Seconds that its calls spent on the way so far; None where there is no way, or nobody measures it."""

    is_ending: bool = False
    """Whether the trunk has said that it goes soon: what is not saved by then is lost."""

    @abstractmethod
    def forward(
        self,
        pass_id: int,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        dropout: DropoutSeed,
        has_backward: bool = True,
        autocast: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Run the layers in train mode and keep what the backward needs.

        Args:
            pass_id: names the pass; higher than that of any before.
            hidden_BTH: hidden states [B, T, H] in the trunk's dtype; under autocast in any that they have there.
            attention_mask: [B, T], 1 for tokens and 0 for padding; None without padding.
            position_ids: [B, T]; None to count from 0.
            dropout: what the layers draw their dropout from.
            has_backward: whether a backward may follow; if not, nothing is kept.
            autocast: dtype of the autocast that the layers run under, whatever is on here; None for none.

        Returns:
            Hidden states [B, T, H], without a graph, in the dtype that leaves the last layer.
        """

    @abstractmethod
    def backward(
        self,
        pass_id: int,
        gradient_BTH: torch.Tensor,
        *,
        wants_input_gradient: bool = True,
        accumulate: bool = True,
        scale: torch.Tensor | None = None,
    ) -> BackwardResult:
        """Take the gradient of what a forward returned through its layers. Ends the pass.

        Args:
            pass_id: that of the forward.
            gradient_BTH: [B, T, H], in the dtype of what the forward returned.
            wants_input_gradient: whether anybody needs the gradient of what went in.
            accumulate: add to the gradients that are there; else clear them first.
            scale: float32 scalar by which the gradients that are there are multiplied before; None for 1.

        Raises:
            PassExpiredError: its activations are not kept any more; run the forward again.
            StaleGradientError: the weights have changed since the forward.
        """

    @abstractmethod
    def update(self, update_id: int, options: Sequence[Mapping[str, Any]], scale: torch.Tensor | None = None) -> None:
        """Do one step of the optimizer.

        Args:
            update_id: one more than the last; that one again is not done twice.
            options: of each group, as it is now (a schedule may have changed the rate).
            scale: float32 scalar by which gradients are multiplied before, as clipping does; None for 1.

        Raises:
            TrainingError: another update was expected.
        """

    @abstractmethod
    def read_state(self) -> dict[str, torch.Tensor]:
        """Return copies of the trained parameters and of the optimizer's state, by name, on the CPU."""

    @abstractmethod
    def write_state(self, state: Mapping[str, torch.Tensor], update_id: int) -> None:
        """Go on from what `read_state` returned after an update.

        Raises:
            TrainingError: it is the state of something else.
        """

    def publish(self, name: str) -> None:
        """Keep a copy of the adapter, as it is now, beyond the training, where the trunk is.

        Args:
            name: under what the client finds it there; what it published under the name before is freed.

        Raises:
            TrainingError: what trains is no adapter; as always on a trunk that does not override this.
        """
        raise TrainingError(
            "this trunk keeps no adapters, as one in this process does not: save_adapter writes it into a directory"
        )

    @abstractmethod
    def close(self) -> None:
        """Free everything. May be called twice."""
