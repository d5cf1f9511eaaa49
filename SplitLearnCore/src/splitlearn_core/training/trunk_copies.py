"""Copies of a trunk to train: its weights shared or their own, an adapter put in, layers that keep less."""

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from splitlearn_core.errors import TrainingError
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.layers import find_layers


def sharing_copy(trunk: Trunk, apart: Iterable[nn.Parameter] = ()) -> Trunk:
    """Copy the modules of a trunk but not its weights, those `apart` excepted; all are frozen in the copy."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in trunk.parameters()}
    memo.update({id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in apart})
    memo.update({id(buffer): buffer for buffer in trunk.buffers()})
    made = copy.deepcopy(trunk, memo)
    assert isinstance(made, Trunk)
    return made


def own_copy(trunk: Trunk) -> Trunk:
    """Copy a trunk with its weights, all of which may train in the copy."""
    made = copy.deepcopy(trunk)
    assert isinstance(made, Trunk)
    for parameter in made.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return made


def recompute_layers(trunk: Trunk, share: float) -> frozenset[int]:
    """Have some layers keep what enters them alone, in place, and compute the rest of their graphs in the backward.

    Hooks stay outside: the entry, the exit and the seeds of dropout belong to the forward, and what a layer draws the
    second time is what it drew the first.

    Args:
        trunk: whose layers.
        share: of how many of them, 0 to 1; they are spread evenly.

    Returns:
        Their indices.

    Raises:
        TrainingError: another share.
    """
    if not 0 <= share <= 1:
        raise TrainingError(f"recompute= is a share of the trunk's layers, from 0 to 1; got {share}")
    layers, kept = find_layers(trunk).layers, trunk.cut.kept
    chosen = [index for place, index in enumerate(kept) if int((place + 1) * share) > int(place * share)]
    for index in chosen:
        forward = functools.partial(checkpoint, layers[index].forward, use_reentrant=False)
        layers[index].forward = forward
    return frozenset(chosen)


def with_adapter(trunk: Trunk, lora: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """Put an adapter that a client drew into a trunk, in place; return its parameters by name."""
    try:
        from splitlearn_core.training import adapters
    except ImportError as error:
        raise ImportError("this process trains no adapter: pip install 'splitlearn-core[train]'") from error
    adapter = adapters.adapter_of(lora, tensors)
    adapters.check_fits(trunk, adapter)
    return adapters.put_into(trunk, adapter)
