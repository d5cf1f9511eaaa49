"""What a training run refuses, survives and leaves behind."""

import logging
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig
from torch import nn

from splitlearn_core import LocalTrunk, TrainingError
from splitlearn_core.errors import AdapterError, StaleGradientError
from splitlearn_core.training import trunk_trainer
from splitlearn_core.training.port import ParameterGroup, TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed
from splitlearn_core.training.trunk_trainer import TrunkTrainer
from tests.support.families import Split, tiny_split
from tests.support.training import batches, fit

SEED = DropoutSeed(0, 0)


def adapter() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"train": ()}, TrainingError, "one or more of bottom, trunk, top; got none"),
        ({"train": "middle"}, TrainingError, "got middle"),
        ({"optimizer": "adamv"}, TrainingError, "no optimizer 'adamv' .* there are .*AdamW.*SGD"),
        ({"optimizer": "lbfgs"}, TrainingError, "no optimizer 'lbfgs'"),
        ({"learning_rate": 1.0}, TrainingError, "AdamW: .*learning_rate"),
        ({"no_weight_decay": ["norm"]}, TrainingError, "no_weight_decay: no parameter that trains has the name norm"),
        (
            {"no_weight_decay": ["model.norm.weight"], "optimizer": "rprop"},
            TrainingError,
            "no_weight_decay: this optimizer has no weight decay at all",
        ),
        ({"lr": -1.0}, TrainingError, "AdamW: Invalid learning rate"),
        ({"lora": LoraConfig(target_modules=["c_attn"])}, AdapterError, "matches nothing there; there are .*q_proj"),
        ({"lora": LoraConfig(init_lora_weights="pissa")}, AdapterError, "'pissa' computes first values from the base"),
        ({"lora": LoraConfig(use_dora=True)}, AdapterError, "use_dora=True is not there for a split model"),
        ({"lora": {"r": 8}}, AdapterError, "takes a peft.LoraConfig; got dict"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], kind: type[Exception], told: str) -> None:
    client = tiny_split("llama").client
    with pytest.raises(kind, match=told):
        client.start_training(**options)  # type: ignore[arg-type]
    assert client.passes is None


@pytest.mark.parametrize("parts", [("bottom",), ("trunk",), ("top",), ("bottom", "top"), ("trunk", "top")])
def test_only_the_parts_that_are_named_train(parts: tuple[str, ...]) -> None:
    split = tiny_split("llama")
    run = split.client.start_training(train=parts, lora=adapter(), lr=0.1)
    expected = {"bottom": range(2), "trunk": range(2, 4), "top": range(4, 6)}
    assert run.adapter is not None
    layers = {int(name.split(".")[2]) for name in run.adapter.modules}
    assert layers == {index for part in parts for index in expected[part]}
    before = [parameter.clone() for parameter in split.client.parameters()]
    losses = fit(split.client, run.optimizer)
    assert len(set(losses)) == len(losses)
    proxies = {id(p) for p in run.passes.proxies.parameters.values()}
    for parameter, old in zip(split.client.parameters(), before, strict=True):
        is_held = parameter.requires_grad and id(parameter) not in proxies
        assert is_held or torch.equal(parameter, old)


def test_a_gradient_that_nobody_needs_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    split, wanted = tiny_split("llama"), []
    backward: Callable[..., object] = TrunkTrainer.backward

    def noting(self: TrunkTrainer, *args: object, wants_input_gradient: bool, **options: object) -> object:
        wanted.append(wants_input_gradient)
        return backward(self, *args, wants_input_gradient=wants_input_gradient, **options)

    monkeypatch.setattr(TrunkTrainer, "backward", noting)
    run = split.client.start_training(train=("trunk", "top"), lora=adapter(), lr=0.1)
    fit(split.client, run.optimizer)
    assert wanted
    assert not any(wanted)


def test_base_weights_are_shared_and_stay_as_they_are() -> None:
    split = tiny_split("llama")
    before = {name: parameter.clone() for name, parameter in split.trunk.named_parameters()}
    own = dict(split.trunk.named_parameters())
    for trainer in [TrunkTrainer(split.trunk, TrunkTrainingSpec()) for _ in range(2)]:
        for name, parameter in trainer.trunk.named_parameters():
            assert parameter.data_ptr() == own[name].data_ptr()
            assert not parameter.requires_grad
    run = split.client.start_training(lora=adapter(), lr=0.1)
    fit(split.client, run.optimizer)
    for name, parameter in split.trunk.named_parameters():
        assert torch.equal(parameter, before[name])


def two_passes_before_a_backward(split: Split) -> list[float]:
    """Two forwards, then both backwards, as a loss of two terms has them."""
    run = split.client.start_training(lora=adapter(), lr=0.1, seed=3)
    split.client.train()
    losses = []
    for first, second in zip(batches(4)[::2], batches(4)[1::2], strict=True):
        loss = split.client(**first).loss + split.client(**second).loss
        loss.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_pass_that_is_forgotten_is_run_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    expected = two_passes_before_a_backward(tiny_split("llama"))
    monkeypatch.setattr(trunk_trainer, "MAX_PASSES", 1)
    torch.manual_seed(1)
    with caplog.at_level(logging.WARNING):
        assert two_passes_before_a_backward(tiny_split("llama")) == expected
    assert "run its forward again; done, as pass" in caplog.text


@pytest.mark.parametrize("num_kept", [1, 64])
def test_a_gradient_of_other_weights_is_refused_with_both_versions(
    monkeypatch: pytest.MonkeyPatch, num_kept: int
) -> None:
    # Also where the trunk has forgotten the pass, and running it again would be one of the new weights.
    monkeypatch.setattr(trunk_trainer, "MAX_PASSES", num_kept)
    split = tiny_split("llama")
    run = split.client.start_training(train="trunk", lora=adapter(), lr=0.1)
    split.client.train()
    batch = batches(1)[0]
    late = split.client(**batch).loss
    split.client(**batch).loss.backward()
    run.optimizer.step()
    with pytest.raises(StaleGradientError, match=r"ran after update 0, and now update 1 is done"):
        late.backward()


@pytest.mark.parametrize("lora", [adapter(), None], ids=["adapter", "all weights"])
def test_a_run_that_is_closed_leaves_nothing_and_another_may_begin(lora: LoraConfig | None) -> None:
    split = tiny_split("llama")
    before = [(name, id(p), p.requires_grad) for name, p in split.client.named_parameters()]
    run = split.client.start_training(lora=lora, lr=0.1)
    with pytest.raises(TrainingError, match=r"trains already: run.close\(\) ends that"):
        split.client.start_training(lora=adapter(), lr=0.1)
    run.close()
    run.close()
    for late in (run.save_checkpoint, run.resume, run.save_adapter):
        with pytest.raises(TrainingError, match=r"closed, .*: save before run.close\(\)"):
            late("late")
    assert [(name, id(p), p.requires_grad) for name, p in split.client.named_parameters()] == before
    assert split.client.passes is None
    expected, got = [], []
    for client, losses in ((tiny_split("llama").client, expected), (split.client, got)):
        torch.manual_seed(1)
        losses += fit(client, client.start_training(lora=adapter(), lr=0.1).optimizer)
    assert got == expected


def test_an_update_that_is_asked_for_twice_is_done_once() -> None:
    split = tiny_split("llama")
    run = split.client.start_training(lora=adapter(), lr=0.1)
    split.client.train()
    split.client(**batches(1)[0]).loss.backward()
    run.optimizer.step()
    training = run.passes.training
    before = training.read_state()
    training.update(1, [{"lr": 0.1}])
    after = training.read_state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(TrainingError, match="expected update 2; got 3"):
        training.update(3, [{"lr": 0.1}])


def test_what_was_read_goes_on_elsewhere() -> None:
    split, other = tiny_split("llama"), tiny_split("llama")
    torch.manual_seed(1)
    run = split.client.start_training(lora=adapter(), lr=0.1)
    fit(split.client, run.optimizer)
    state, update_id = run.passes.training.read_state(), run.update_id
    far = LocalTrunk(other.trunk).start_training(run.spec)
    far.write_state(state, update_id)
    gradient = torch.ones(1, 3, split.trunk.hidden_size)
    for training in (run.passes.training, far):
        training.forward(10_000, gradient, dropout=SEED)
        training.backward(10_000, gradient, accumulate=False)
        training.update(update_id + 1, [{"lr": 0.1}])
    ours, theirs = run.passes.training.read_state(), far.read_state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(TrainingError, match="state is of other parameters"):
        far.write_state({"parameter x": gradient}, 1)


def test_an_overflow_at_the_trunk_skips_the_step_on_both_sides() -> None:
    split = tiny_split("llama")
    run = split.client.start_training(lora=adapter(), lr=0.1)
    split.client.train()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    own = [p for p in split.client.parameters() if p.requires_grad]
    before = [parameter.clone() for parameter in own]
    skipped = done = 0
    while not done:
        scaler.scale(split.client(**batches(1)[0]).loss).backward()
        updates = run.update_id
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
        skipped, done = skipped + (run.update_id == updates), run.update_id
        if not done:
            assert all(torch.equal(p, old) for p, old in zip(own, before, strict=True))
    assert skipped
    assert not all(torch.equal(p, old) for p, old in zip(own, before, strict=True))


def test_an_unscaled_gradient_is_the_plain_one() -> None:
    split, other = tiny_split("llama"), tiny_split("llama")
    weights: list[nn.Module] = []
    runs = []
    for each in (split, other):
        torch.manual_seed(1)
        runs.append(each.client.start_training(lora=adapter(), optimizer="sgd", lr=0.1))
        weights.append(each.client.train())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    split.client(**batches(1)[0]).loss.backward()
    runs[0].optimizer.step()
    scaler.scale(other.client(**batches(1)[0]).loss).backward()
    scaler.step(runs[1].optimizer)
    ours, theirs = (run.passes.training.read_state() for run in runs)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor)


HELD = "model.layers.2.self_attn.q_proj"
NORM = "model.layers.2.input_layernorm"
A, B = f"{HELD}.lora_A.default.weight", f"{HELD}.lora_B.default.weight"
VALUES = {A: torch.ones(2, 32), B: torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("fields", "values", "told"),
    [
        ({"megatron_config": {}, "megatron_core": "os"}, VALUES, "got megatron_config, megatron_core"),
        ({"target_modules": "q_proj"}, VALUES, "expected target_modules by name"),
        ({"r": -1}, VALUES, r"expected ranks of 1 or more; got \[-1\]"),
        ({"rank_pattern": {HELD: 2.5}}, VALUES, r"expected ranks of 1 or more; got \[2, 2.5\]"),
        ({"rank_pattern": {"q_proj": 2}}, VALUES, "rank_pattern by names among target_modules; got q_proj"),
        ({"alpha_pattern": {"(.*a)+b": 2}}, VALUES, r"alpha_pattern by names among target_modules; got \(\.\*a\)\+b"),
        ({"alpha_pattern": {HELD: "2"}}, VALUES, "expected alpha_pattern as an object of names and numbers"),
        ({"alpha_pattern": [HELD]}, VALUES, "expected alpha_pattern as an object of names and numbers"),
        ({"target_modules": ["model.layers.5.mlp.up_proj"]}, VALUES, "which this part does not hold"),
        ({"r": 3}, VALUES, rf"{A} floating-point numbers \[3, 32\]; got \[2, 32\] in torch.float32"),
        ({"r": 2**40}, VALUES, rf"{A} floating-point numbers \[{2**40}, 32\]; got"),
        ({"r": 10**6}, VALUES | {A: torch.ones(0, 10**6)}, rf"{A} .*\[1000000, 32\]; got \[0, 1000000\]"),
        ({"rank_pattern": {HELD: 3}}, VALUES, rf"{A} floating-point numbers \[3, 32\]; got"),
        ({}, VALUES | {B: torch.ones(2, 32)}, rf"{B} floating-point numbers \[32, 2\]; got \[2, 32\]"),
        ({}, VALUES | {A: torch.ones(2, 32, dtype=torch.int64)}, rf"{A} floating-.*; got \[2, 32\] in torch.int64"),
        ({}, {A: VALUES[A]}, rf"{B} floating-point numbers \[32, 2\]; got none"),
        ({}, VALUES | {"x": torch.ones(2)}, r"of x no value of that name; got \[2\] in torch.float32"),
        ({"target_modules": [HELD, NORM]}, VALUES, "no adapter of rank 2 of a LlamaRMSNorm.*: leave it out of target_"),
    ],
)
def test_an_adapter_from_elsewhere_is_looked_at_before_it_takes_memory(
    fields: dict[str, object], values: dict[str, torch.Tensor], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitlearn_core.training.adapters.inject_adapter_in_model", None)
    spec = TrunkTrainingSpec(lora={"r": 2, "target_modules": [HELD], **fields}, tensors=values, optimizer="sgd")
    with pytest.raises(AdapterError, match=told):
        TrunkTrainer(tiny_split("llama").trunk, spec)


@pytest.mark.parametrize(
    ("optimizer", "group", "told"),
    [
        ("os.system", ParameterGroup(names=tuple(VALUES), options={"lr": 0.1}), "no optimizer 'os.system'"),
        ("sgd", ParameterGroup(names=tuple(VALUES), options={"lr": "fast"}), "SGD: "),
        ("sgd", ParameterGroup(names=("x",), options={"lr": 0.1}), "no parameter of the trunk .* name x"),
    ],
)
def test_an_optimizer_from_elsewhere_is_looked_at(optimizer: str, group: ParameterGroup, told: str) -> None:
    lora = {"r": 2, "target_modules": [HELD]}
    spec = TrunkTrainingSpec(lora=lora, tensors=VALUES, optimizer=optimizer, groups=[group])
    with pytest.raises(TrainingError, match=told):
        TrunkTrainer(tiny_split("llama").trunk, spec)


def test_it_stays_out_of_what_is_saved() -> None:
    split = tiny_split("llama")
    names = set(split.client.state_dict())
    run = split.client.start_training(lr=0.1)
    assert set(split.client.state_dict()) == names
    assert set(run.passes.proxies.parameters) <= {name for name, _ in split.client.named_parameters()}
    assert set(run.passes.proxies.parameters) <= {name for name, _ in split.whole.named_parameters()}
