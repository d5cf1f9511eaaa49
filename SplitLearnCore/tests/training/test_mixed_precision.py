"""Under autocast a split model trains as the whole one does there, to the last bit, overflows included."""

import copy
import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from splitlearn_core import LocalTrunk, TrainingError
from splitlearn_core.split.layers import find_layers
from splitlearn_core.training import trunk_trainer
from splitlearn_core.training.port import TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed
from splitlearn_core.training.trunk_trainer import TrunkTrainer
from tests.support import families
from tests.support.families import Split, tiny_split
from tests.support.training import NUM_STEPS, assert_same, batches, fit, without_prefix

FAMILIES = ("gpt2", "llama", "qwen3")
SGD = {"lr": 0.1, "momentum": 0.9}


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear")


def adapters(split: Split, **options: Any) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    """A run, and the whole model with the same adapter and optimizer."""
    torch.manual_seed(5)
    run = split.client.start_training(lora=lora(), lr=1e-2, **options)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora())
    return run, whole, torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)


def all_weights(split: Split) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    """The same, of all weights."""
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    client = copy.deepcopy(split.client)
    client.trunk = LocalTrunk(copy.deepcopy(split.trunk))
    return client.start_training(optimizer="SGD", **SGD), whole, torch.optim.SGD(whole.parameters(), **SGD)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora(family: str, autocast: torch.dtype, recompute: bool) -> None:
    run, whole, optimizer = adapters(tiny_split(family), recompute=recompute)
    expected = fit(whole, optimizer, clip=0.05, autocast=autocast)
    assert fit(run.model, run.optimizer, clip=0.05, autocast=autocast) == expected
    assert_same(run, whole, without_prefix)


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_all_weights(family: str) -> None:
    run, whole, optimizer = all_weights(tiny_split(family))
    expected = fit(whole, optimizer, clip=1.0, autocast=torch.bfloat16, num_steps=2)
    assert fit(run.model, run.optimizer, clip=1.0, autocast=torch.bfloat16, num_steps=2) == expected
    assert_same(run, whole)


def test_it_is_another_arithmetic_than_float32_and_switched_with_each_forward() -> None:
    losses = []
    for autocast in (None, torch.bfloat16):
        run, whole, optimizer = adapters(tiny_split("llama"))
        losses.append(fit(run.model, run.optimizer, autocast=autocast, num_steps=2))
        expected = fit(whole, optimizer, autocast=autocast, num_steps=2)
        expected += fit(whole, optimizer, num_steps=2)
        assert losses[-1] + fit(run.model, run.optimizer, num_steps=2) == expected
    assert losses[0] != losses[1]


def test_hidden_states_cross_in_the_dtype_that_they_have_there() -> None:
    split = tiny_split("llama")
    run, whole, optimizer = adapters(split)
    entered = []
    for model in (whole.base_model.model, split.client):
        # As of an architecture whose layers end with a product of matrices.
        find_layers(model).layers[1].register_forward_hook(lambda layer, args, output: output.to(torch.bfloat16))
    find_layers(run.passes.training.trunk).layers[2].register_forward_pre_hook(
        lambda layer, args: entered.append(args[0].dtype)
    )
    expected = fit(whole, optimizer, autocast=torch.bfloat16)
    assert fit(split.client, run.optimizer, autocast=torch.bfloat16) == expected
    assert_same(run, whole, without_prefix)
    assert set(entered) == {torch.bfloat16}


def test_a_loop_without_a_run() -> None:
    split = tiny_split("gpt2")
    whole = copy.deepcopy(split.whole)
    trunk_names = {name for name, _ in split.trunk.named_parameters()} - {
        name for name, _ in split.client.named_parameters()
    }
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name not in trunk_names)
    expected = fit(
        whole, torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], **SGD), None, 1.0, 4, torch.bfloat16
    )
    split.trunk.requires_grad_(False)
    client: nn.Module = split.client.requires_grad_(True)
    assert fit(client, torch.optim.SGD(client.parameters(), **SGD), None, 1.0, 4, torch.bfloat16) == expected


def test_a_pass_that_is_forgotten_is_run_again_under_the_same_autocast(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gradients() -> list[torch.Tensor]:
        run, _, _ = adapters(tiny_split("llama"))
        run.model.train()
        losses = []
        for batch in batches(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses.append(run.model(**batch).loss)
        sum(losses).backward()
        return [p.grad for p in run.model.parameters() if p.requires_grad]

    expected = gradients()
    monkeypatch.setattr(trunk_trainer, "MAX_PASSES", 1)
    with caplog.at_level(logging.WARNING):
        got = gradients()
    assert "run its forward again; done, as pass" in caplog.text
    assert len(got) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_float16_that_overflow_are_skipped_on_both_sides(family: str, clip: float | None) -> None:
    run, whole, optimizer = all_weights(tiny_split(family))
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-8, growth_interval=3) for _ in "12"]
    expected = fit(whole, optimizer, clip, autocast=torch.float16, scaler=scalers[0])
    assert fit(run.model, run.optimizer, clip, autocast=torch.float16, scaler=scalers[1]) == expected
    assert scalers[0].state_dict() == scalers[1].state_dict()
    assert 0 < run.update_id < NUM_STEPS
    assert_same(run, whole)


def test_an_overflow_of_the_trunk_alone_skips_the_step_on_both_sides() -> None:
    split = tiny_split("llama")
    with torch.no_grad():  # the same function, through an intermediate that is large
        mlp = split.whole.model.layers[3].mlp
        mlp.up_proj.weight.mul_(2.0**10)
        mlp.down_proj.weight.mul_(2.0**-10)
    run, whole, optimizer = all_weights(split)
    proxies = run.passes.proxies.parameters
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**13) for _ in "12"]
    models = ((whole, optimizer), (run.model, run.optimizer))
    for (model, each), scaler in zip(models, scalers, strict=True):
        model.train()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(**batches(1)[0]).loss
        scaler.scale(loss).backward()
        finite = {name: bool(p.grad.isfinite().all()) for name, p in model.named_parameters() if p.grad is not None}
        assert [name for name, is_finite in finite.items() if not is_finite] == ["model.layers.3.mlp.down_proj.weight"]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        scaler.step(each)
        scaler.update()
        each.zero_grad()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert scaler.get_scale() == 2.0**12
    assert "model.layers.3.mlp.down_proj.weight" in proxies
    assert run.update_id == 0
    assert_same(run, whole)
    expected = fit(whole, optimizer, autocast=torch.float16, scaler=scalers[0])
    assert fit(run.model, run.optimizer, autocast=torch.float16, scaler=scalers[1]) == expected
    assert run.update_id > 0
    assert_same(run, whole)


def test_a_fused_optimizer_skips_too() -> None:
    split = tiny_split("llama")
    run = split.client.start_training(lora=lora(), optimizer="adamw", lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    fit(split.client, run.optimizer, num_steps=1, autocast=torch.float16, scaler=scaler)
    assert run.update_id == 0
    assert scaler.get_scale() == 2.0**59


@pytest.mark.parametrize("exponent", [-50, 0, 50])
def test_a_loss_scale_of_any_size_is_undone(exponent: int) -> None:
    losses = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**exponent)):
        run, _, _ = adapters(tiny_split("llama"))
        losses.append(fit(run.model, run.optimizer, scaler=scaler))
        assert run.update_id == NUM_STEPS
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)


def test_a_gradient_of_another_dtype_or_shape_is_refused_and_the_pass_is_kept() -> None:
    trainer = TrunkTrainer(tiny_split("llama").trunk, TrunkTrainingSpec())
    hidden = torch.ones(1, 3, 32)
    trainer.forward(1, hidden, dropout=DropoutSeed(0, 0), autocast=torch.bfloat16)
    for wrong in (hidden.to(torch.bfloat16), hidden[:, :2]):
        with pytest.raises(TrainingError, match=r"expected .* \[1, 3, 32\] in torch.float32; got"):
            trainer.backward(1, wrong)
    assert trainer.backward(1, hidden).gradient_BTH is not None
