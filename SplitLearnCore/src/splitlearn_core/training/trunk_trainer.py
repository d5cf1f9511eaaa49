"""A Trunk that trains, in the process that holds it.

Tensor shapes: B rows, T tokens, H hidden size; N trainable parameters.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from splitlearn_core.errors import PassExpiredError, StaleGradientError, TrainingError, TrainingLostError
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.training.memory import SavedForBackward, TrainingMemory, bytes_of, state_bytes, weight_bytes
from splitlearn_core.training.optimizers import check_options, optimizer_class
from splitlearn_core.training.port import BackwardResult, TrunkTraining, TrunkTrainingSpec
from splitlearn_core.training.precision import autocast_as
from splitlearn_core.training.seeding import DropoutSeed, Seeding, seed_layers
from splitlearn_core.training.trunk_copies import own_copy, recompute_layers, sharing_copy, with_adapter

MAX_PASSES = 64
"""Forwards without a backward that are kept at most; older ones are forgotten."""


class Pass(NamedTuple):
    """What is kept of a forward until its backward."""

    entered_BTH: torch.Tensor
    """A leaf of the graph."""
    left_BTH: torch.Tensor
    """The end of the graph."""
    version: int
    """Updates that the weights had seen."""
    since_s: float
    """When it was, on `time.monotonic`."""
    num_bytes: int
    """What is kept of it."""


class TrunkTrainer(TrunkTraining):
    """Trains an adapter of a trunk, or a copy of the trunk itself. One user at a time.

    Args:
        trunk: whose layers run; not changed. Its weights are shared unless all of them train.
        spec: what trains and how.
        memory: where to book what this keeps; None not to bound it.

    Raises:
        AdapterError: the adapter changes what the trunk does not hold.
        TrainingError: an optimizer or a parameter that does not exist.
        TrainingMemoryError: there is no room for it.
    """

    def __init__(self, trunk: Trunk, spec: TrunkTrainingSpec, memory: TrainingMemory | None = None) -> None:
        self._spec = spec
        self._memory = memory or TrainingMemory()
        self._state_bytes = state_bytes(trunk, spec)
        self._lasting_bytes = weight_bytes(trunk, spec) + self._state_bytes
        # Before anything of it is there.
        self._memory.take(
            self._lasting_bytes,
            "a training of all weights" if spec.full else "a training of an adapter",
            "train an adapter, or one of a lower rank or of fewer modules, or come back when others have ended",
        )
        try:
            self._build(trunk, spec)
        except BaseException:
            self._memory.give_back(self._lasting_bytes)
            raise

    def _build(self, trunk: Trunk, spec: TrunkTrainingSpec) -> None:
        self.trunk = own_copy(trunk) if spec.full else sharing_copy(trunk)
        self.trainable = self._make_trainable()
        self._seeding = Seeding()
        seed_layers(self.trunk, self._seeding)
        self._recomputed = recompute_layers(self.trunk, spec.recompute)
        self._passes: dict[int, Pass] = {}
        self._newest_pass = 0
        self._optimizer = self._make_optimizer() if self.trainable else None
        # Of each group, what makes state: an option that is off again leaves what it made.
        self._widest = [] if self._optimizer is None else [options_of(g) for g in self._optimizer.param_groups]
        self.update_id = 0
        self._is_closed = False

    def __repr__(self) -> str:
        optimizer = self._spec.optimizer or "no optimizer"
        return (
            f"<{len(self.trainable)} parameters, {optimizer}, {self.update_id} updates, {self.num_passes} passes kept>"
        )

    def _make_trainable(self) -> dict[str, nn.Parameter]:
        """Return what trains by name, in the order of the groups."""
        names = [name for group in self._spec.groups for name in group.names]
        if self._spec.full:
            known = dict(self.trunk.named_parameters())
        elif self._spec.lora is not None:
            known = with_adapter(self.trunk, self._spec.lora, self._spec.tensors or {})
        else:
            return {}
        if unknown := sorted(set(names) - known.keys()):
            raise TrainingError(f"no parameter of the trunk that trains has the name {', '.join(unknown)}")
        return {name: known[name] for name in names}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {**group.options, "params": [self.trainable[name] for name in group.names]} for group in self._spec.groups
        ]
        kind = optimizer_class(self._spec.optimizer)
        for group in self._spec.groups:
            check_options(kind, group.options)
        made: torch.optim.Optimizer = kind(groups)  # type: ignore[call-arg]
        return made

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
        """Run the layers in train mode and keep what the backward needs."""
        if self._is_closed:
            raise TrainingLostError("this training of the trunk was closed: run.resume(tag) goes on from a checkpoint")
        device = self.trunk.device
        entered_BTH = hidden_BTH.detach().to(device).requires_grad_()
        mask, positions = (t if t is None else t.to(device) for t in (attention_mask, position_ids))
        with torch.set_grad_enabled(has_backward), autocast_as(autocast, device):
            # Not the leaf itself: autocast would take it for a weight, cast it once for all its uses, and add up their
            # gradients in the lower precision.
            inputs = (entered_BTH.view_as(entered_BTH), mask, positions)
            if not has_backward:
                return self._run(dropout, *inputs).to(hidden_BTH.device)
            with SavedForBackward(self._memory, self.trunk) as saved:
                left_BTH = self._run(dropout, *inputs)
                for tensor in (entered_BTH, left_BTH, mask, positions):
                    if tensor is not None:
                        saved.hold(tensor)
                # What enters a layer that is computed again no graph shows; the first gets what came.
                num_shown = self.trunk.cut.kept[0] in self._recomputed
                saved.expect((len(self._recomputed) - num_shown) * entered_BTH.nbytes)
        self._keep(pass_id, Pass(entered_BTH, left_BTH, self.update_id, time.monotonic(), saved.num_bytes))
        return left_BTH.detach().to(hidden_BTH.device)

    def _keep(self, pass_id: int, kept: Pass) -> None:
        self._forget(pass_id)
        self._passes[pass_id] = kept
        self._newest_pass = max(self._newest_pass, pass_id)
        while len(self._passes) > MAX_PASSES:
            self._forget(next(iter(self._passes)))

    @property
    def num_passes(self) -> int:
        """Forwards whose backward is waited for."""
        return sum(kept.version == self.update_id for kept in list(self._passes.values()))

    def forget_passes(self, before_s: float) -> None:
        """Forget those that were before a moment on `time.monotonic`; their forwards have to run again."""
        for pass_id in [pass_id for pass_id, kept in self._passes.items() if kept.since_s < before_s]:
            self._forget(pass_id)

    def _forget(self, pass_id: int) -> None:
        kept = self._passes.pop(pass_id, None)
        if kept is not None:
            self._memory.give_back(kept.num_bytes)

    def _forget_all(self) -> None:
        for pass_id in list(self._passes):
            self._forget(pass_id)

    def _run(self, dropout: DropoutSeed, *inputs: torch.Tensor | None) -> torch.Tensor:
        self.trunk.train()
        state = torch.get_rng_state()
        self._seeding.current = dropout
        try:
            left_BTH = self.trunk(*inputs)
        finally:
            self._seeding.current = None
            torch.set_rng_state(state)
        assert isinstance(left_BTH, torch.Tensor)
        return left_BTH

    def backward(
        self,
        pass_id: int,
        gradient_BTH: torch.Tensor,
        *,
        wants_input_gradient: bool = True,
        accumulate: bool = True,
        scale: torch.Tensor | None = None,
    ) -> BackwardResult:
        """Take the gradient of what a forward returned through its layers."""
        kept = self._passes.get(pass_id)
        if kept is None:
            raise PassExpiredError(
                f"pass {pass_id} is not kept any more (the newest is {self._newest_pass}): run its forward again"
            )
        if kept.version != self.update_id:
            raise StaleGradientError(
                f"the forward of pass {pass_id} ran after update {kept.version}, and now update {self.update_id} is "
                "done: its gradient is of other weights; run the forward again"
            )
        check_gradient(gradient_BTH, kept.left_BTH)
        self._prepare(accumulate, scale)
        try:
            return self._through(kept, gradient_BTH, wants_input_gradient)
        finally:
            self._forget(pass_id)

    def _through(self, kept: Pass, gradient_BTH: torch.Tensor, wants_input_gradient: bool) -> BackwardResult:
        if not self.trunk.training:  # somebody has evaluated with it, and layers that are computed again drop out
            self.trunk.train()
        wanted = [*self.trainable.values(), *([kept.entered_BTH] if wants_input_gradient else [])]
        if wanted:
            torch.autograd.backward(kept.left_BTH, gradient_BTH.to(kept.left_BTH.device), inputs=wanted)
        entered = kept.entered_BTH.grad
        return BackwardResult(None if entered is None else entered.to(gradient_BTH.device), self._norms())

    def _prepare(self, accumulate: bool, scale: torch.Tensor | None) -> None:
        for parameter in self.trainable.values():
            if not accumulate:
                parameter.grad = None
            elif parameter.grad is not None and scale is not None:
                parameter.grad.mul_(scale.to(parameter.device))

    def _norms(self) -> torch.Tensor:
        norms = [
            torch.zeros((), dtype=p.dtype, device=p.device) if p.grad is None else torch.linalg.vector_norm(p.grad)
            for p in self.trainable.values()
        ]
        return torch.stack(norms) if norms else torch.empty(0)

    def update(self, update_id: int, options: Sequence[Mapping[str, Any]], scale: torch.Tensor | None = None) -> None:
        """Do one step of the optimizer."""
        if update_id == self.update_id:
            return
        if update_id != self.update_id + 1:
            raise TrainingError(f"expected update {self.update_id + 1}; got {update_id}")
        if self._optimizer is None or len(options) != len(self._optimizer.param_groups):
            raise TrainingError(f"expected options of {len(self._spec.groups)} groups; got {len(options)}")
        known = [{name: v for name, v in now.items() if name in self._optimizer.defaults} for now in options]
        for now in known:
            check_options(type(self._optimizer), now)
        self._make_room_for_options(known)
        self._prepare(accumulate=True, scale=scale)  # last: what was refused may be asked for again
        for group, now in zip(self._optimizer.param_groups, known, strict=True):
            group.update(now)
        self._optimizer.step()
        self.update_id = update_id
        # Their gradients would be of other weights: of them only that is kept.
        for pass_id, kept in list(self._passes.items()):
            self._forget(pass_id)
            nothing = torch.empty(0)
            self._passes[pass_id] = kept._replace(entered_BTH=nothing, left_BTH=nothing, num_bytes=0)

    def state_sizes(self) -> dict[str, int]:
        """Return the bytes of each tensor that `read_state` returns, by name, in its order; nothing is copied."""
        return {name: tensor.nbytes for name, tensor in self._state().items()}

    def read_state(self, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
        """Return copies of the trained parameters and of the optimizer's state, by name, on the CPU.

        Args:
            names: of those that are wanted, among `state_sizes`; None for all.
        """
        wanted = self._state()
        if names is not None:
            wanted = {name: wanted[name] for name in names}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in wanted.items()}

    def _state(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {f"parameter {n}": p for n, p in self.trainable.items()}
        for name, parameter in self.trainable.items():
            state = {} if self._optimizer is None else self._optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{key} {name}"] = value
        return tensors

    def write_state(self, state: Mapping[str, torch.Tensor], update_id: int) -> None:
        """Go on from what `read_state` returned after an update."""
        expected = {f"parameter {name}" for name in self.trainable}
        came = {name for name in state if name.startswith("parameter ")}
        if came != expected:
            differing = ", ".join(sorted(expected ^ came)[:4])
            raise TrainingError(f"the state is of other parameters than those that train: {differing}")
        came_bytes = bytes_of(tensor for name, tensor in state.items() if name not in expected)
        self._make_room_for_state(came_bytes, "the optimizer's state that came", "come back when others have ended")
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(state[f"parameter {name}"])
        if self._optimizer is not None:
            self._optimizer.state.clear()
            group_of = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
            for full_name, tensor in state.items():
                key, _, name = full_name.partition(" ")
                if key != "parameter":
                    parameter = self.trainable[name]
                    device = place_of_state(key, parameter, group_of[id(parameter)])
                    self._optimizer.state[parameter][key] = tensor.to(device, copy=True)
        self._forget_all()
        self.update_id = update_id

    def _make_room_for_options(self, options: Sequence[Mapping[str, Any]]) -> None:
        """Book what an optimizer keeps under options that were zero up to now, such as a momentum."""
        widest = [
            before | {n: v for n, v in now.items() if v} for before, now in zip(self._widest, options, strict=True)
        ]
        # Of whatever is not zero only the values change, and those at every step of a schedule.
        if [*map(switched_on, widest)] == [*map(switched_on, self._widest)]:
            return
        groups = [replace(group, options=now) for group, now in zip(self._spec.groups, widest, strict=True)]
        self._make_room_for_state(
            state_bytes(self.trunk, replace(self._spec, groups=groups)),
            "the optimizer's state under the options of this update",
            "leave them as they were, or come back when others have ended",
        )
        self._widest = widest

    def _make_room_for_state(self, num_bytes: int, what: str, advice: str) -> None:
        """Book what an optimizer's state takes, should it be more than was foreseen."""
        more = max(0, num_bytes - self._state_bytes)
        self._memory.take(more, what, advice)
        self._state_bytes += more
        self._lasting_bytes += more

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapter's values.

        Raises:
            TrainingError: what trains is no adapter.
        """
        if self._spec.lora is None:
            raise TrainingError("no adapter of the trunk trains: there is none to publish")
        return sum(parameter.nbytes for parameter in self.trainable.values())

    def as_trained(self) -> Trunk:
        """Return a trunk with the adapter as it is now, for evaluation; only the base weights are shared."""
        made = sharing_copy(self.trunk, apart=self.trainable.values())
        made.train(False)
        return made

    def close(self) -> None:
        """Free everything."""
        self._is_closed = True
        self._forget_all()
        self._memory.give_back(self._lasting_bytes)
        self._lasting_bytes = 0
        self.trainable = {}
        self._optimizer = None


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an optimizer's group."""
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def switched_on(options: Mapping[str, Any]) -> set[str]:
    """Return the names of the options that are not zero, false or none."""
    return {name for name, value in options.items() if value}


def place_of_state(key: str, parameter: torch.Tensor, group: Mapping[str, Any]) -> torch.device:
    """Return where an optimizer has a tensor of its state, as `torch.optim.Optimizer.load_state_dict` puts it."""
    is_read_here = key == "step" and not group.get("fused") and not group.get("capturable")
    return torch.device("cpu") if is_read_here else parameter.device


def check_gradient(gradient_BTH: torch.Tensor, left_BTH: torch.Tensor) -> None:
    """Refuse what cannot be the gradient of what a forward returned.

    Raises:
        TrainingError: another shape or dtype.
    """
    if gradient_BTH.shape != left_BTH.shape or gradient_BTH.dtype != left_BTH.dtype:
        raise TrainingError(
            f"expected the gradient of what the forward returned, {list(left_BTH.shape)} in {left_BTH.dtype}; "
            f"got {list(gradient_BTH.shape)} in {gradient_BTH.dtype}"
        )
