"""Dropout that does not depend on which process draws it: every layer draws from a seed of its own.

Three processes that drop out the layers of one model draw from three generators, and one process from a single one.
Here the generator is seeded before each layer from a seed, the number of the forward and the number of the layer, so
that whole and split, first run and repeat, draw the same. It is seeded behind the layer before, and not in a hook of
the layer itself: a checkpoint of a layer's activations (gradient checkpointing) notes the generator's state when the
layer is called, and goes back to it for the second run, in which nothing is seeded.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from splitlearn_core.parts.part import CutModel
from splitlearn_core.split.layers import find_layers


class DropoutSeed(NamedTuple):
    """What the layers of one forward draw from."""

    seed: int
    """Of the run; any integer."""
    step: int
    """Number of the forward in the run, from 0."""

    def of_layer(self, layer: int) -> int:
        """Return what the generator is seeded with before a layer, 0 to 2**63 - 1; -1 stands for the embeddings."""
        digest = hashlib.blake2b(f"{self.seed} {self.step} {layer}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) >> 1


@dataclass
class Seeding:
    """The seed that the layers of a model draw from now; changed from forward to forward."""

    current: DropoutSeed | None = None
    """None to leave the generator alone."""

    def sow(self, layer: int) -> None:
        """Seed the generator of this process for a layer."""
        if self.current is not None:
            torch.manual_seed(self.current.of_layer(layer))


def seed_layers(model: PreTrainedModel, seeding: Seeding) -> list[Any]:
    """Have every layer that a model, or a part of one, holds draw its dropout from a seed; return the hooks.

    What lies before the layers draws as layer -1, and the first layer goes on from there, as both are in one part; what
    lies behind the last draws as layer n.
    """
    layers = find_layers(model).layers
    num_layers = len(layers)
    kept = model.cut.kept if isinstance(model, CutModel) else range(num_layers)

    def sow(layer: int) -> Any:
        return lambda *inputs: seeding.sow(layer)

    following = [index for index in range(1, num_layers) if index in kept]
    if num_layers - 1 in kept:
        following.append(num_layers)
    hooks: list[Any] = [layers[index - 1].register_forward_hook(sow(index)) for index in following]
    if not isinstance(model, CutModel) or model.cut.has_input_embeddings:
        hooks.append(model.register_forward_pre_hook(sow(-1)))
    return hooks


@contextmanager
def seeded_dropout(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Draw the dropout of a model's training forwards from (seed, forward, layer), whether it is whole or split.

    The generator of this process is as it was after each forward. Two runs with the same seed and the same forwards
    drop out the same, also when one is split over several processes.

    Args:
        model: a whole model of transformers, or a split model; of a split one the trunk draws accordingly.
        seed: any integer.
    """
    seeding, step = Seeding(), 0
    states: list[torch.Tensor] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal step
        if module.training:
            states.append(torch.get_rng_state())
            seeding.current = DropoutSeed(seed, step)
            step += 1

    def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seeding.current = None
        if states:
            torch.set_rng_state(states.pop())

    hooks = [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        *seed_layers(model, seeding),
        model.register_forward_hook(end, with_kwargs=True, always_call=True),
    ]
    before = getattr(model, "dropout_seeding", None)
    model.dropout_seeding = seeding  # type: ignore[assignment]
    try:
        yield
    finally:
        model.dropout_seeding = before  # type: ignore[assignment]
        for hook in hooks:
            hook.remove()
