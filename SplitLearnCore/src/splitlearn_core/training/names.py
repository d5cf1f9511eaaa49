"""Which parameter of a model belongs to which part, also where the part is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from splitlearn_core.split.layers import find_layers

if TYPE_CHECKING:
    from splitlearn_core.parts.client import SplitModel

PARTS = ("bottom", "trunk", "top")


class BottomDone(Exception):
    """Leaves a forward behind the Bottom's last layer."""


@dataclass(frozen=True)
class Ownership:
    """Which names of a model belong to which part."""

    layers: str
    """Dotted name of the list of layers, `transformer.h` for GPT-2."""
    points: tuple[int, int]
    """The cut points."""
    bottom_names: frozenset[str]
    """Names outside the layers of which the Bottom makes hidden states."""

    def part_of(self, name: str) -> str:
        """Return the part to which a parameter, or a module, belongs by its name."""
        begin = f"{self.layers}."
        if name.startswith(begin):
            index = int(name.removeprefix(begin).partition(".")[0])
            return PARTS[(index >= self.points[0]) + (index >= self.points[1])]
        inside = any(known == name or known.startswith(f"{name}.") for known in self.bottom_names)
        return "bottom" if inside else "top"


def ownership(model: SplitModel) -> Ownership:
    """Find out which of a client model's parameters outside the layers are the Bottom's: those a gradient reaches."""
    layers, a_and_b = find_layers(model).name, (model.split_points.bottom_end, model.split_points.trunk_end)
    begin = f"{layers}."
    outside = {name: p for name, p in model.named_parameters() if not name.startswith(begin) and p.is_floating_point()}
    reached = _reached(model, list(outside.values()))
    return Ownership(
        layers, a_and_b, frozenset(name for name, is_reached in zip(outside, reached, strict=True) if is_reached)
    )


def _reached(model: SplitModel, parameters: list[nn.Parameter]) -> list[bool]:
    left: list[torch.Tensor] = []

    def leave(layer: nn.Module, args: Any, output: Any) -> None:
        left.append(output[0] if isinstance(output, tuple) else output)
        raise BottomDone

    hook = find_layers(model).layers[model.split_points.bottom_end - 1].register_forward_hook(leave, prepend=True)
    was_training, wanted = model.training, [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            # Told, or transformers warns of padding that is none.
            told = {"attention_mask": torch.ones_like(ids)} if "attention_mask" in model.forward_parameters else {}
            model.train(False).architecture.forward(model, input_ids=ids, **told)
    except BottomDone:
        gradients = torch.autograd.grad(left[0].sum(), parameters, allow_unused=True)
        return [gradient is not None for gradient in gradients]
    finally:
        hook.remove()
        model.train(was_training)
        for parameter, was_wanted in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(was_wanted)
    raise AssertionError("the forward passed the Bottom's last layer without its hook")
