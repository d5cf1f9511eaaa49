"""What a training keeps is counted as it is, bounded, and given back.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.multiprocessing.reductions import StorageWeakRef

from splitlearn_core import SplitPoints
from splitlearn_core.errors import PassExpiredError, StaleGradientError, TrainingError, TrainingMemoryError
from splitlearn_core.training.memory import TrainingMemory, state_bytes
from splitlearn_core.training.port import ParameterGroup, TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed
from splitlearn_core.training.trunk_trainer import MAX_PASSES, TrunkTrainer
from tests.support.families import Split, tiny_split

SEED = DropoutSeed(0, 0)


def hidden(split: Split, num_rows: int, num_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, num_tokens, split.trunk.hidden_size, generator=generator)


def spec_of(split: Split, **options: Any) -> TrunkTrainingSpec:
    """What the trunk of a client that trains so is told."""
    run = split.client.start_training(**{"lora": LoraConfig(r=4, target_modules="all-linear"), "lr": 1e-2, **options})
    spec = run.spec
    run.close()
    return spec


def kept_storages(left_BTH: torch.Tensor, trainer: TrunkTrainer) -> list[torch.UntypedStorage]:
    """What the nodes of a graph say that they have saved, each storage once, without the trunk's parameters."""
    models = {p.untyped_storage().data_ptr() for p in (*trainer.trunk.parameters(), *trainer.trunk.buffers())}
    found = {left_BTH.untyped_storage().data_ptr(): left_BTH.untyped_storage()}
    nodes, seen = [left_BTH.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        saved += list(getattr(node, "saved_tensors", ()))
        for tensor in [t for one in saved for t in (one if isinstance(one, (tuple, list)) else [one])]:
            # The numbers by which something was multiplied are no tensors of anybody's.
            if isinstance(tensor, torch.Tensor) and (tensor.dim() or tensor.dtype is not torch.float64):
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
    return [storage for place, storage in found.items() if place not in models]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_what_a_forward_keeps_is_what_its_graph_has_saved(family: str, lora: bool) -> None:
    split, memory = tiny_split(family), TrainingMemory()
    trainer = TrunkTrainer(split.trunk, spec_of(split, **({} if lora else {"lora": None})), memory)
    lasting_bytes = memory.num_bytes
    hidden_BTH = hidden(split, 2, 7)
    left_BTH = trainer.forward(1, hidden_BTH, dropout=SEED)
    kept = trainer._passes[1].left_BTH
    assert kept is not None
    counted, saved = memory.num_bytes - lasting_bytes, sum(s.nbytes() for s in kept_storages(kept, trainer))
    # Whatever belongs to no output, such as positions that nobody needs a gradient of, was saved and is gone again.
    assert 10 * hidden_BTH.nbytes < saved <= counted < 1.01 * saved
    trainer.forward(2, hidden_BTH, dropout=SEED, has_backward=False)
    assert trainer.num_passes == 1
    trainer.backward(1, torch.ones_like(left_BTH))
    assert memory.num_bytes == lasting_bytes


def forget(trainer: TrunkTrainer) -> None:
    trainer.forget_passes(before_s=math.inf)


def update(trainer: TrunkTrainer) -> None:
    trainer.update(1, [{}])


def push_out(trainer: TrunkTrainer) -> None:
    for pass_id in range(2, 2 + MAX_PASSES):
        trainer.forward(pass_id, torch.ones(1, 1, trainer.trunk.hidden_size), dropout=SEED)


def go_back(trainer: TrunkTrainer) -> None:
    trainer.backward(1, torch.ones(2, 7, trainer.trunk.hidden_size))


def go_back_to_the_trunk_alone(trainer: TrunkTrainer) -> None:
    # Nothing before the first adapter is met on the way, its norm for one.
    trainer.backward(1, torch.ones(2, 7, trainer.trunk.hidden_size), wants_input_gradient=False)


@pytest.mark.slow
@pytest.mark.parametrize("end", [forget, update, TrunkTrainer.close, push_out, go_back, go_back_to_the_trunk_alone])
@pytest.mark.parametrize("recompute", [0.0, 1.0], ids=["kept", "computed again"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_a_forward_keeps_is_gone_with_its_pass(
    family: str, recompute: float, end: Callable[[TrunkTrainer], None]
) -> None:
    split = tiny_split(family)
    trainer = TrunkTrainer(split.trunk, spec_of(split, recompute=recompute))
    trainer.forward(1, hidden(split, 2, 7), dropout=SEED)
    kept = trainer._passes[1]
    entered = weakref.ref(kept.entered_BTH)
    # To look into a graph that is computed again computes it.
    shown = [kept.left_BTH.untyped_storage()] if recompute else kept_storages(kept.left_BTH, trainer)
    storages = [StorageWeakRef(storage) for storage in (kept.entered_BTH.untyped_storage(), *shown)]
    assert not any(storage.expired() for storage in storages)
    del kept, shown
    end(trainer)
    assert entered() is None
    assert all(storage.expired() for storage in storages)


def test_a_backward_does_not_run_through_what_was_changed_in_place() -> None:
    split = tiny_split("llama")
    trainer = TrunkTrainer(split.trunk, spec_of(split))
    left_BTH = trainer.forward(1, hidden(split, 2, 7), dropout=SEED)
    with torch.no_grad():
        for parameter in trainer.trainable.values():
            parameter.add_(1)
    with pytest.raises(RuntimeError, match=r"was modified by an inplace operation: it is at version \d+; expected"):
        trainer.backward(1, torch.ones_like(left_BTH))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw", {}),
        ("adamw", {"amsgrad": True}),
        ("adam", {"foreach": True}),
        ("adam", {"fused": True, "amsgrad": True}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.9}),
        ("rmsprop", {"momentum": 0.9, "centered": True}),
        ("adagrad", {}),
        ("rprop", {}),
        ("adamax", {}),
    ],
)
@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
def test_what_lasts_is_foreseen(optimizer: str, options: dict[str, Any], lora: bool) -> None:
    split, memory = tiny_split("llama"), TrainingMemory()
    spec = spec_of(split, optimizer=optimizer, **options, **({} if lora else {"lora": None}))
    trainer = TrunkTrainer(split.trunk, spec, memory)
    left_BTH = trainer.forward(1, hidden(split, 1, 3), dropout=SEED)
    trainer.backward(1, torch.ones_like(left_BTH))
    trainer.update(1, [group.options for group in spec.groups])
    trained = sum(parameter.nbytes for parameter in trainer.trainable.values())
    state = sum(tensor.nbytes for name, tensor in trainer.read_state().items() if not name.startswith("parameter "))
    copied = sum(t.nbytes for t in (*trainer.trunk.parameters(), *trainer.trunk.buffers())) - trained
    assert memory.num_bytes == 2 * trained + state + (0 if lora else copied)
    trainer.close()
    trainer.close()
    assert memory.num_bytes == 0


def own_bytes(trainer: TrunkTrainer) -> int:
    """What an optimizer keeps beside the parameters."""
    return sum(size for name, size in trainer.state_sizes().items() if not name.startswith("parameter "))


def test_options_that_make_state_later_are_booked_before_the_step() -> None:
    split, memory = tiny_split("llama"), TrainingMemory()
    trainer = TrunkTrainer(split.trunk, spec_of(split, optimizer="sgd"), memory)
    left_BTH = trainer.forward(1, hidden(split, 1, 3), dropout=SEED)
    trainer.backward(1, torch.ones_like(left_BTH))
    trainer.update(1, [{"lr": 0.1}])
    begun_bytes, begun_state = memory.num_bytes, own_bytes(trainer)
    memory.limit_bytes = begun_bytes
    before = trainer.read_state()
    gradients = [p.grad.clone() for p in trainer.trainable.values() if p.grad is not None]
    with pytest.raises(TrainingMemoryError, match=r"options of this update needs \d+ bytes more"):
        trainer.update(2, [{"lr": 0.2, "momentum": 0.9}], torch.tensor(0.5))
    assert (memory.num_bytes, trainer.update_id) == (begun_bytes, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.read_state().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(trainer.trainable.values(), gradients, strict=True))
    trainer.update(2, [{"lr": 0.05}])
    memory.limit_bytes = None
    trainer.update(3, [{"momentum": 0.9}])
    assert own_bytes(trainer) > begun_state
    assert memory.num_bytes - begun_bytes == own_bytes(trainer) - begun_state
    trainer.close()
    assert memory.num_bytes == 0


def test_what_an_option_has_made_stays_booked_without_it() -> None:
    split, memory = tiny_split("llama"), TrainingMemory()
    spec = spec_of(split, optimizer="sgd")
    (both,) = spec.groups
    groups = [ParameterGroup(names=names, options=both.options) for names in (both.names[::2], both.names[1::2])]
    trainer = TrunkTrainer(split.trunk, replace(spec, groups=groups), memory)
    begun_bytes = memory.num_bytes
    left_BTH = trainer.forward(1, hidden(split, 1, 3), dropout=SEED)
    trainer.backward(1, torch.ones_like(left_BTH))
    trainer.update(1, [{"momentum": 0.9}, {}])
    assert 0 < own_bytes(trainer) == memory.num_bytes - begun_bytes
    one_bytes = own_bytes(trainer)
    trainer.update(2, [{"momentum": 0.0}, {"momentum": 0.9}])
    assert one_bytes < own_bytes(trainer) == memory.num_bytes - begun_bytes


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=["plain", "capturable"])
def test_a_state_goes_where_its_optimizer_has_it(options: dict[str, Any]) -> None:
    split = tiny_split("llama")
    # A device of its own, as an accelerator is.
    trainer = TrunkTrainer(split.trunk.to("meta"), spec_of(split, lora=None, optimizer="nadam", **options))
    kept = ("parameter", "step", "mu_product", "exp_avg", "exp_avg_sq")
    state = {f"{key} {name}": torch.zeros(p.shape) for key in kept for name, p in trainer.trainable.items()}
    state |= {name: torch.tensor(1.0) for name in state if name.startswith(("step", "mu_product"))}
    trainer.write_state(state, 1)
    assert trainer._optimizer is not None
    for parameter in trainer.trainable.values():
        places = {key: tensor.device.type for key, tensor in trainer._optimizer.state[parameter].items()}
        elsewhere = dict.fromkeys(("mu_product", "exp_avg", "exp_avg_sq"), "meta")
        assert places == {**elsewhere, "step": "meta" if options else "cpu"}


def test_an_optimizer_that_does_not_run_without_storage_counts_as_adam() -> None:
    split = tiny_split("llama")
    spec = spec_of(split, optimizer="adafactor")
    assert spec.tensors is not None
    assert state_bytes(split.trunk, spec) == 2 * sum(tensor.nbytes for tensor in spec.tensors.values())


def kept_by_one_pass(split: Split, spec: TrunkTrainingSpec) -> tuple[int, int]:
    """What lasts of a training, and what one forward of it keeps."""
    memory = TrainingMemory()
    trainer = TrunkTrainer(split.trunk, spec, memory)
    lasting_bytes = memory.num_bytes
    trainer.forward(1, hidden(split, 2, 7), dropout=SEED)
    return lasting_bytes, memory.num_bytes - lasting_bytes


def test_a_forward_too_many_is_refused_and_leaves_nothing() -> None:
    split = tiny_split("llama")
    spec = spec_of(split)
    lasting_bytes, pass_bytes = kept_by_one_pass(split, spec)
    memory = TrainingMemory(lasting_bytes + 2 * pass_bytes - 1)
    trainer = TrunkTrainer(split.trunk, spec, memory)
    hidden_BTH = hidden(split, 2, 7)
    first_BTH = trainer.forward(1, hidden_BTH, dropout=SEED)
    with pytest.raises(TrainingMemoryError) as caught:
        trainer.forward(2, hidden_BTH, dropout=SEED)
    assert f"here of at most {memory.limit_bytes}: train with recompute=True, with smaller batches" in str(caught.value)
    assert memory.num_bytes == lasting_bytes + pass_bytes
    with pytest.raises(PassExpiredError):
        trainer.backward(2, torch.ones_like(first_BTH))
    norms_N = trainer.backward(1, torch.ones_like(first_BTH)).norms_N
    assert torch.equal(trainer.forward(3, hidden_BTH, dropout=SEED), first_BTH)
    assert torch.equal(trainer.backward(3, torch.ones_like(first_BTH), accumulate=False).norms_N, norms_N)


def test_computed_again_a_forward_keeps_what_enters_its_layers() -> None:
    split = tiny_split("llama")
    lasting_bytes, pass_bytes = kept_by_one_pass(split, spec_of(split))
    hidden_BTH = hidden(split, 2, 7)
    lasting_too, kept_bytes = kept_by_one_pass(split, spec_of(split, recompute=True))
    assert lasting_too == lasting_bytes
    # What enters two layers, and what leaves the second; and what the entry keeps of it.
    assert 3 * hidden_BTH.nbytes <= kept_bytes <= 4 * hidden_BTH.nbytes < 0.5 * pass_bytes
    memory = TrainingMemory(lasting_bytes + 2 * kept_bytes)
    trainer = TrunkTrainer(split.trunk, spec_of(split, recompute=True), memory)
    for pass_id in (1, 2):
        left_BTH = trainer.forward(pass_id, hidden_BTH, dropout=SEED)
    with pytest.raises(TrainingMemoryError, match=r"here of at most \d+: train with"):
        trainer.forward(3, hidden_BTH, dropout=SEED)
    trainer.backward(1, torch.ones_like(left_BTH))
    trainer.backward(2, torch.ones_like(left_BTH))
    assert memory.num_bytes == lasting_bytes


def test_a_share_of_the_layers_is_computed_again_and_counted_so() -> None:
    split = tiny_split("llama", SplitPoints(1, 5))
    all_kept, half, none = (kept_by_one_pass(split, spec_of(split, recompute=share))[1] for share in (0.0, 0.5, 1.0))
    between = (all_kept + none) / 2
    assert half == pytest.approx(between, rel=0.1)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(TrainingError, match="recompute= is a share of the trunk's layers, from 0 to 1; got"):
            TrunkTrainer(split.trunk, spec_of(split, recompute=wrong), TrainingMemory())


def test_a_copy_that_has_no_room_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    split = tiny_split("llama")
    spec = spec_of(split, lora=None)
    lasting_bytes, _ = kept_by_one_pass(split, spec)
    memory = TrainingMemory(lasting_bytes - 1)
    monkeypatch.setattr("splitlearn_core.training.trunk_trainer.own_copy", None)
    with pytest.raises(TrainingMemoryError, match=f"of all weights needs {lasting_bytes} bytes more.*hold 0 "):
        TrunkTrainer(split.trunk, spec, memory)
    assert memory.num_bytes == 0


def test_a_training_that_cannot_begin_keeps_nothing() -> None:
    split, memory = tiny_split("llama"), TrainingMemory()
    spec = spec_of(split)
    groups = [ParameterGroup(names=("nothing",), options=spec.groups[0].options)]
    wrong = TrunkTrainingSpec(lora=spec.lora, tensors=spec.tensors, optimizer="SGD", groups=groups)
    with pytest.raises(TrainingError, match="no parameter of the trunk that trains has the name nothing"):
        TrunkTrainer(split.trunk, wrong, memory)
    assert memory.num_bytes == 0


def test_an_update_frees_the_forwards_before_it() -> None:
    split, memory = tiny_split("llama"), TrainingMemory()
    spec = spec_of(split)
    trainer = TrunkTrainer(split.trunk, spec, memory)
    lasting_bytes = memory.num_bytes
    for pass_id in (1, 2):
        left_BTH = trainer.forward(pass_id, hidden(split, 1, 3), dropout=SEED)
    trainer.backward(2, torch.ones_like(left_BTH))
    trainer.update(1, [group.options for group in spec.groups])
    assert (memory.num_bytes, trainer.num_passes) == (lasting_bytes, 0)
    with pytest.raises(StaleGradientError, match="ran after update 0, and now update 1 is done"):
        trainer.backward(1, torch.ones_like(left_BTH))


def test_a_state_from_elsewhere_counts_where_it_is_more_than_was_foreseen() -> None:
    split = tiny_split("llama")
    trainer = TrunkTrainer(split.trunk, spec_of(split, optimizer="adamw"))
    left_BTH = trainer.forward(1, hidden(split, 1, 3), dropout=SEED)
    trainer.backward(1, torch.ones_like(left_BTH))
    trainer.update(1, [{}])
    memory = TrainingMemory()
    other = TrunkTrainer(split.trunk, spec_of(split, optimizer="sgd"), memory)
    foreseen = memory.num_bytes
    state = trainer.read_state()
    other.write_state(state, 1)
    assert memory.num_bytes - foreseen == sum(t.nbytes for n, t in state.items() if not n.startswith("parameter "))
    other.close()
    assert memory.num_bytes == 0
