"""What of a split model trains, on which side: decided before anything is changed or asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch

from splitlearn_core.errors import TrainingError
from splitlearn_core.training.names import PARTS, Ownership, ownership
from splitlearn_core.training.skeleton import model_without_storage

if TYPE_CHECKING:
    from peft import LoraConfig

    from splitlearn_core.parts.client import SplitModel
    from splitlearn_core.training.adapters import Adapter


class Trainable(NamedTuple):
    """What trains, on which side."""

    own: frozenset[str]
    """Names of parameters of Bottom and Top, those of the adapter among them."""
    far: dict[str, torch.dtype]
    """Dtypes of the trunk's, by name."""
    adapter: Adapter | None
    """Of all parts together; None for full fine-tuning."""


def choose(model: SplitModel, train: Iterable[str], lora: LoraConfig | None) -> Trainable:
    """Decide what trains; the model stays as it is.

    Raises:
        AdapterError: an adapter that cannot be had across a cut, or that matches nothing.
        TrainingError: a part that there is not, or nothing trains.
    """
    parts = check_parts(train)
    owners = ownership(model)
    trainable = choose_all(model, parts, owners) if lora is None else choose_adapter(model, parts, owners, lora)
    if not trainable.own and not trainable.far:
        raise TrainingError("nothing trains: the adapter changes no module of these parts")
    return trainable


def check_parts(train: Iterable[str]) -> frozenset[str]:
    """Check the names of the parts that are to train.

    Raises:
        TrainingError: none, or one that there is not.
    """
    parts = frozenset([train] if isinstance(train, str) else train)
    if not parts or not parts <= set(PARTS):
        raise TrainingError(f"train= takes one or more of {', '.join(PARTS)}; got {', '.join(sorted(parts)) or 'none'}")
    return parts


def choose_adapter(model: SplitModel, parts: frozenset[str], owners: Ownership, lora: LoraConfig) -> Trainable:
    """Draw an adapter of these parts."""
    try:
        from splitlearn_core.training import adapters
    except ImportError as error:
        raise ImportError("lora= needs peft: pip install 'splitlearn-core[train]'") from error
    within = None if parts == set(PARTS) else modules_of(model, parts, owners)
    adapter = adapters.draw_adapter(model.architecture, model.config, lora, model.trunk.info.dtype, within)
    own = frozenset(adapter.within(name for name, _ in model.named_modules()).tensors)
    far = {name: tensor.dtype for name, tensor in adapter.tensors.items() if name not in own}
    return Trainable(own, far, adapter)


def choose_all(model: SplitModel, parts: frozenset[str], owners: Ownership) -> Trainable:
    """Choose all parameters of these parts."""
    own = frozenset(
        name for name, p in model.named_parameters() if owners.part_of(name) in parts and p.is_floating_point()
    )
    whole = model_without_storage(model.architecture, model.config, model.trunk.info.dtype)
    far = {
        name: parameter.dtype
        for name, parameter in whole.named_parameters()
        if "trunk" in parts and owners.part_of(name) == "trunk" and parameter.is_floating_point()
    }
    return Trainable(own, far, None)


def modules_of(model: SplitModel, parts: frozenset[str], owners: Ownership) -> list[str]:
    """Return the names of the whole model's modules that belong to some parts."""
    whole = model_without_storage(model.architecture, model.config, model.trunk.info.dtype)
    return [name for name, _ in whole.named_modules() if owners.part_of(name) in parts]
