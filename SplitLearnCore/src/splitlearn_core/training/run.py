"""A training run: what of a split model trains, and the one optimizer for all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import optim

from splitlearn_core.errors import TrainingError
from splitlearn_core.training.checkpoint import load_checkpoint, save_adapter, save_checkpoint
from splitlearn_core.training.choice import Trainable, choose
from splitlearn_core.training.crossing import TrunkPasses
from splitlearn_core.training.guard import Guard, GuardConfig
from splitlearn_core.training.installation import Installation
from splitlearn_core.training.optimizers import defaults_of, make_optimizer, optimizer_class, said_of
from splitlearn_core.training.port import ParameterGroup, TrunkTrainingSpec
from splitlearn_core.training.proxies import GradientProxies

if TYPE_CHECKING:
    from peft import LoraConfig

    from splitlearn_core.parts.client import SplitModel
    from splitlearn_core.parts.port import TrunkPort
    from splitlearn_core.training.adapters import Adapter


@dataclass(frozen=True, eq=False, repr=False)
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
    installed: Installation
    """What the run changed of the model."""
    guard: Guard
    """Watches its gradients; has counted the updates that were not done."""

    def __repr__(self) -> str:
        what = "all weights" if self.adapter is None else f"an adapter of {len(self.adapter.modules)} modules"
        state = "open" if self.model.run is self else "closed"
        return (
            f"<training of {what}: {type(self.optimizer).__name__}, update {self.update_id}, {state}; {self.guard!r}>"
        )

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
        self._check_open()
        save_checkpoint(self, Path(directory) / tag)
        return Path(directory) / tag

    def resume(self, tag: str, directory: str | Path = "checkpoints") -> None:
        """Go on from a checkpoint, also where the server has forgotten this training or is another.

        Raises:
            CheckpointError: there is none of that name, or it is damaged.
            TrainingError: it is of another model, cut, optimizer or adapter.
        """
        self._check_open()
        load_checkpoint(self, Path(directory) / tag)

    def save_adapter(self, directory: str | Path) -> None:
        """Write the adapter of all parts as one ordinary adapter of the whole model, for `PeftModel.from_pretrained`.

        Raises:
            TrainingError: all weights train, and no adapter.
            CheckpointError: it could not be written.
        """
        self._check_open()
        save_adapter(self, Path(directory))

    def publish_adapter(self, name: str) -> None:
        """Have the trunk's server keep the trunk's share of the adapter, as it is now, beyond this run.

        `from_pretrained(..., trunk=address, adapter=name)`, and `adapter=` of a client's calls and sessions, compute
        with it. It is this client's alone, and freed by `model.trunk.free_adapter(name)` or when it is idle for long.
        The share of Bottom and Top is not sent anywhere: train only the trunk, or save that by `save_adapter`.

        Args:
            name: what it is called there; what this client published under the name before is freed.

        Raises:
            TrainingError: the trunk's share of what trains is no adapter, or the trunk is in this process.
            ResourceExhaustedError: (of splitlearn_comm) the server has no room for another of this client, or of all.
        """
        self._check_open()
        if self.adapter is None or not self.passes.is_trainable:
            raise TrainingError("no adapter of the trunk trains: there is none to publish")
        self.passes.training.publish(name)

    @property
    def update_id(self) -> int:
        """Updates done so far."""
        return self.passes.update_id

    @property
    def is_trunk_ending(self) -> bool:
        """Whether the trunk's server has said that it stops soon: a checkpoint saved now loses nothing."""
        return self.passes.training.is_ending

    def leave_trunk(self) -> None:
        """Free what the trunk keeps of this run, so that its server need not wait; `resume` begins there anew."""
        self.passes.training.close()

    def _check_open(self) -> None:
        if self.model.run is not self:
            raise TrainingError("this run is closed, and what it trained is freed: save before run.close()")

    def close(self) -> None:
        """End the run; save before it what is to stay. May be called twice.

        What the trunk keeps for it is freed, and the client's model is as it was before: without the adapter, of which
        the trunk's share is gone too, and without proxies. What was trained of Bottom and Top themselves stays trained.
        """
        self.passes.close()
        if self.model.run is self:
            self.installed.remove()
            self.model.passes = self.model.run = None


def start_training(
    model: SplitModel,
    *,
    train: Iterable[str],
    lora: LoraConfig | None,
    optimizer: str | type[optim.Optimizer],
    no_weight_decay: Iterable[str],
    seed: int,
    recompute: float,
    guard: GuardConfig | None,
    options: Mapping[str, Any],
) -> TrainingRun:
    """Begin to train some parts of a split model; arguments as in `SplitModel.start_training`.

    The trunk is asked before the model is changed: it may refuse.
    """
    if model.run is not None:
        raise TrainingError("this model trains already: run.close() ends that, and another may begin")
    base = optimizer_class(optimizer if isinstance(optimizer, str) else optimizer.__name__)
    if isinstance(optimizer, type) and base is not optimizer:
        raise TrainingError(
            f"the trunk knows optimizers by their names in torch.optim, {optimizer.__module__}.{optimizer.__name__} "
            f"is another than torch's {base.__name__}: take one of torch's"
        )
    trainable = choose(model, train, lora)
    groups = grouped(trainable, defaults_of(base, options), frozenset(no_weight_decay))
    spec = trunk_spec(trainable, base, groups, recompute=float(recompute))
    proxies = GradientProxies(trainable.far, model.device, [name for each in spec.groups for name in each.names])
    training = model.trunk.start_training(spec)
    installed = Installation(model, trainable, proxies)
    if model.passes is not None:  # those of a loop that had no run
        model.passes.close()
    watching = Guard(guard or GuardConfig())
    model.passes = passes = TrunkPasses(model.trunk, training, proxies, seed, watching)
    own = [{**each.options, "params": installed.parameters(each.names)} for each in groups]
    both = make_optimizer(base, own, proxies, passes.update, watching)
    model.run = TrainingRun(model, both, passes, trainable.adapter, spec, installed, watching)
    return model.run


def frozen_passes(trunk: TrunkPort, device: torch.device) -> TrunkPasses:
    """Let gradients go through a trunk that does not train."""
    return TrunkPasses(trunk, trunk.start_training(TrunkTrainingSpec()), GradientProxies({}, device), 0)


class Group(NamedTuple):
    """Parameters of all parts that an optimizer treats alike."""

    names: frozenset[str]
    options: Mapping[str, Any]


def grouped(trainable: Trainable, options: Mapping[str, Any], no_weight_decay: frozenset[str]) -> list[Group]:
    """Return what trains in one group, or in two: the second without weight decay.

    Raises:
        TrainingError: a name of which nothing trains, or an optimizer without weight decay.
    """
    names = trainable.own | trainable.far.keys()
    if not no_weight_decay:
        return [Group(names, options)]
    if unknown := sorted(no_weight_decay - names):
        raise TrainingError(f"no_weight_decay: no parameter that trains has the name {unknown[0]}")
    if "weight_decay" not in options:
        raise TrainingError("no_weight_decay: this optimizer has no weight decay at all")
    groups = [Group(names - no_weight_decay, options), Group(no_weight_decay, {**options, "weight_decay": 0.0})]
    return [group for group in groups if group.names]


def trunk_spec(
    trainable: Trainable, base: type[optim.Optimizer], groups: Sequence[Group], *, recompute: float
) -> TrunkTrainingSpec:
    """Return what the trunk is told: of each group those names that are its own, maybe none."""
    if not trainable.far:
        return TrunkTrainingSpec(recompute=recompute)
    its = tuple(
        ParameterGroup(names=tuple(n for n in trainable.far if n in group.names), options=said_of(group.options))
        for group in groups
    )
    if trainable.adapter is None:
        return TrunkTrainingSpec(full=True, optimizer=base.__name__, groups=its, recompute=recompute)
    tensors = {name: tensor for name, tensor in trainable.adapter.tensors.items() if name in trainable.far}
    lora = trainable.adapter.described(tensors)
    return TrunkTrainingSpec(lora=lora, tensors=tensors, optimizer=base.__name__, groups=its, recompute=recompute)
