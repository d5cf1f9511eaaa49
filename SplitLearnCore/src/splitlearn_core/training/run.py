"""A training run: what of a split model trains, and the one optimizer for all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn, optim

from splitlearn_core.errors import TrainingError
from splitlearn_core.training.checkpoint import load_checkpoint, save_adapter, save_checkpoint
from splitlearn_core.training.crossing import TrunkPasses
from splitlearn_core.training.names import PARTS, Ownership, ownership
from splitlearn_core.training.optimizers import defaults_of, make_optimizer, optimizer_class, said_of
from splitlearn_core.training.port import ParameterGroup, TrunkTrainingSpec
from splitlearn_core.training.proxies import GradientProxies
from splitlearn_core.training.skeleton import model_without_storage

if TYPE_CHECKING:
    from peft import LoraConfig

    from splitlearn_core.parts.client import SplitModel
    from splitlearn_core.parts.port import TrunkPort
    from splitlearn_core.training.adapters import Adapter


class Trainable(NamedTuple):
    """What trains, on which side."""

    own: dict[str, nn.Parameter]
    """Parameters of Bottom and Top."""
    far: dict[str, torch.dtype]
    """Dtypes of the trunk's."""
    adapter: Adapter | None
    """Of all parts together; None for full fine-tuning."""


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What `model.start_training` returns."""

    model: SplitModel
    """The model that trains."""
    optimizer: optim.Optimizer
    """Of the class that was asked for; its `step()` steps the trunk too. Its groups have the trunk's parameters as
    proxies of two elements each."""
    passes: TrunkPasses
    """The way to the trunk."""
    adapter: Adapter | None
    """The adapter of all parts that train, as it was drawn; None for full fine-tuning."""
    spec: TrunkTrainingSpec
    """What the trunk was told."""

    def save_checkpoint(self, tag: str, directory: str | Path = "checkpoints") -> Path:
        """Write both sides, between two steps: what `resume` needs to go on bit for bit.

        Args:
            tag: name of the checkpoint; one of that name is replaced when the new one is whole.
            directory: where checkpoints are, on this machine.

        Returns:
            Where it is.

        Raises:
            CheckpointError: it could not be written; what was there is there still.
        """
        save_checkpoint(self, Path(directory) / tag)
        return Path(directory) / tag

    def resume(self, tag: str, directory: str | Path = "checkpoints") -> None:
        """Go on from a checkpoint, also where the server has forgotten this training or is another.

        Raises:
            CheckpointError: there is none of that name, or it is damaged.
            TrainingError: it is of another model, cut, optimizer or adapter.
        """
        load_checkpoint(self, Path(directory) / tag)

    def save_adapter(self, directory: str | Path) -> None:
        """Write the adapter of all parts as one ordinary adapter of the whole model, for `PeftModel.from_pretrained`.

        Raises:
            TrainingError: all weights train, and no adapter.
            CheckpointError: it could not be written.
        """
        save_adapter(self, Path(directory))

    @property
    def update_id(self) -> int:
        """Updates done so far."""
        return self.passes.update_id

    def close(self) -> None:
        """Free what the trunk keeps for this run; Bottom and Top stay as they are."""
        self.passes.close()
        if self.model.passes is self.passes:
            self.model.passes = None


def start_training(
    model: SplitModel,
    *,
    train: Iterable[str],
    lora: LoraConfig | None,
    optimizer: str | type[optim.Optimizer],
    seed: int,
    recompute: bool,
    options: Mapping[str, Any],
) -> TrainingRun:
    """Begin to train some parts of a split model; arguments as in `SplitModel.start_training`."""
    parts = check_parts(train)
    base = optimizer if isinstance(optimizer, type) else optimizer_class(optimizer)
    trainable = choose(model, parts, lora)
    proxies = GradientProxies(trainable.far, model.device)
    group = {**defaults_of(base, options), "params": in_order_of_the_whole(model, proxies, trainable)}
    spec = trunk_spec(trainable, base, said_of(group), recompute=recompute)
    passes = TrunkPasses(model.trunk.start_training(spec), proxies, seed, model.trunk.info.dtype)
    model.passes = passes
    return TrainingRun(model, make_optimizer(base, [group], proxies, passes.update), passes, trainable.adapter, spec)


def frozen_passes(trunk: TrunkPort, device: torch.device) -> TrunkPasses:
    """Let gradients go through a trunk that does not train."""
    return TrunkPasses(trunk.start_training(TrunkTrainingSpec()), GradientProxies({}, device), 0, trunk.info.dtype)


def check_parts(train: Iterable[str]) -> frozenset[str]:
    """Check the names of the parts that are to train.

    Raises:
        TrainingError: none, or one that there is not.
    """
    parts = frozenset([train] if isinstance(train, str) else train)
    if not parts or not parts <= set(PARTS):
        raise TrainingError(f"train= takes one or more of {', '.join(PARTS)}; got {', '.join(sorted(parts)) or 'none'}")
    return parts


def choose(model: SplitModel, parts: frozenset[str], lora: LoraConfig | None) -> Trainable:
    """Decide what trains, put the adapter into Bottom and Top, and freeze all else of theirs."""
    owners = ownership(model)
    if lora is None:
        return choose_all(model, parts, owners)
    try:
        from splitlearn_core.training import adapters
    except ImportError as error:
        raise ImportError("lora= needs peft: pip install 'splitlearn-core[train]'") from error
    within = None if parts == set(PARTS) else modules_of(model, parts, owners)
    adapter = adapters.draw_adapter(model.architecture, model.config, lora, model.trunk.info.dtype, within)
    model.requires_grad_(False)
    own = adapters.put_into(model, adapter.within(name for name, _ in model.named_modules()))
    far = {name: tensor.dtype for name, tensor in adapter.tensors.items() if name not in own}
    return Trainable(own, far, adapter)


def choose_all(model: SplitModel, parts: frozenset[str], owners: Ownership) -> Trainable:
    """Train all parameters of these parts."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(owners.part_of(name) in parts and parameter.is_floating_point())
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    dtype = model.trunk.info.dtype
    whole = model_without_storage(model.architecture, model.config, dtype)
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


def in_order_of_the_whole(model: SplitModel, proxies: GradientProxies, trainable: Trainable) -> list[nn.Parameter]:
    """Return parameters and proxies in the order in which the whole model has them.

    Raises:
        TrainingError: there are none.
    """
    if not trainable.own and not trainable.far:
        raise TrainingError("nothing trains: the adapter changes no module of these parts")
    proxies.install(model)
    wanted = {id(p) for p in (*trainable.own.values(), *proxies.parameters.values())}
    return [p for p in model.parameters() if id(p) in wanted]


def trunk_spec(
    trainable: Trainable, base: type[optim.Optimizer], options: Mapping[str, Any], *, recompute: bool
) -> TrunkTrainingSpec:
    """Return what the trunk is told."""
    if not trainable.far:
        return TrunkTrainingSpec(recompute=recompute)
    groups = (ParameterGroup(names=tuple(trainable.far), options=options),)
    if trainable.adapter is None:
        return TrunkTrainingSpec(full=True, optimizer=base.__name__, groups=groups, recompute=recompute)
    tensors = {name: tensor for name, tensor in trainable.adapter.tensors.items() if name in trainable.far}
    lora = trainable.adapter.described(tensors)
    return TrunkTrainingSpec(lora=lora, tensors=tensors, optimizer=base.__name__, groups=groups, recompute=recompute)
