"""With gradient checkpointing a split model trains as without, to the last bit."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from splitlearn_core import LocalTrunk, SplitModel
from splitlearn_core.split.layers import find_layers
from splitlearn_core.training.port import TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed, seeded_dropout
from splitlearn_core.training.trunk_trainer import TrunkTrainer
from tests.support.families import Split, tiny_split
from tests.support.training import NUM_STEPS, assert_same, fit, without_prefix

FAMILIES = ("gpt2", "llama", "qwen3")


def enable(model: SplitModel, use_reentrant: bool) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})


def enable_around_hooks(model: SplitModel, use_reentrant: bool) -> None:
    """As transformers did before it checkpointed `forward`, and as wrappers do: the hooks of a layer run twice."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(nn.Module.__call__, self, **kwargs), *args, use_reentrant=use_reentrant)

    layers = find_layers(model).layers
    for index in model.cut.kept:
        kind = type(layers[index])
        layers[index].__class__ = type(kind.__name__, (kind,), {"__call__": call})
    model.enable_input_require_grads()


def drop_out(split: Split, p: float = 0.2) -> None:
    for model in (split.whole, split.client, split.trunk):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = p


def trainings(split: Split, is_lora: bool, recompute: bool) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    """A run, and the whole model with what trains there."""
    if is_lora:
        lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3)
        torch.manual_seed(5)
        run = split.client.start_training(lora=lora, lr=1e-2, recompute=recompute)
        torch.manual_seed(5)
        whole: nn.Module = get_peft_model(copy.deepcopy(split.whole), lora)
        return run, whole, torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    client = copy.deepcopy(split.client)
    client.trunk = LocalTrunk(copy.deepcopy(split.trunk))
    run = client.start_training(lr=1e-3, recompute=recompute)
    return run, whole, torch.optim.AdamW(whole.parameters(), lr=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("switch", [enable, enable_around_hooks])
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("is_lora", [False, True], ids=["all weights", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_changes_no_bit(family: str, is_lora: bool, use_reentrant: bool, switch: Any) -> None:
    split = tiny_split(family)
    drop_out(split)
    run, whole, optimizer = trainings(split, is_lora, recompute=use_reentrant)
    with seeded_dropout(whole.base_model.model if is_lora else whole, 11):
        expected = fit(whole, optimizer, clip=1.0)
    switch(run.model, use_reentrant)
    with seeded_dropout(run.model, 11):
        assert fit(run.model, run.optimizer, clip=1.0) == expected
    assert_same(run, whole, without_prefix if is_lora else str)
    # The trunk was asked once for each micro-batch, not again in the backward.
    assert run.passes.next_pass_id == 2 * NUM_STEPS + 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_goes_with_mixed_precision_and_can_be_switched_off() -> None:
    split = tiny_split("llama")
    run, whole, optimizer = trainings(split, is_lora=False, recompute=True)
    expected = [fit(whole, optimizer, autocast=torch.bfloat16, num_steps=2) for _ in range(2)]
    enable(run.model, use_reentrant=False)
    assert fit(run.model, run.optimizer, autocast=torch.bfloat16, num_steps=2) == expected[0]
    run.model.gradient_checkpointing_disable()
    assert fit(run.model, run.optimizer, autocast=torch.bfloat16, num_steps=2) == expected[1]
    assert_same(run, whole)


def test_the_trunk_computes_one_layer_after_the_other_again() -> None:
    trainer = TrunkTrainer(tiny_split("llama").trunk, TrunkTrainingSpec(recompute=True))
    events: list[str] = []

    def watch(index: int) -> None:
        def behind(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            output.register_hook(lambda gradient: events.append(f"gradient {index}"))

        mlp = find_layers(trainer.trunk).layers[index].mlp
        mlp.register_forward_pre_hook(lambda module, args: events.append(f"layer {index}"))
        mlp.register_forward_hook(behind)

    watch(2)
    watch(3)
    hidden = torch.ones(1, 3, 32)
    trainer.forward(1, hidden, dropout=DropoutSeed(0, 0))
    assert events == ["layer 2", "layer 3"]
    trainer.backward(1, hidden)
    assert events[2:] == ["gradient 3", "layer 3", "gradient 2", "layer 2"]
