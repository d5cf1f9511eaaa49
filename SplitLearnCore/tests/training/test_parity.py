"""A split model trains as the whole one does, to the last bit."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from splitlearn_core import LocalTrunk
from splitlearn_core.training.seeding import seeded_dropout
from tests.support.families import tiny_split
from tests.support.training import NUM_STEPS, assert_same, fit, without_prefix

FAMILIES = ("gpt2", "llama", "qwen3")
OPTIMIZERS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "AdamW": {"lr": 1e-2, "weight_decay": 0.1}}


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lora(family: str, optimizer: str, clip: float | None) -> None:
    split, options = tiny_split(family), OPTIMIZERS[optimizer]
    lora = LoraConfig(r=4, target_modules="all-linear")
    torch.manual_seed(5)
    run = split.client.start_training(lora=lora, optimizer=optimizer, **options)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora)
    trains = [p for p in whole.parameters() if p.requires_grad]
    expected = fit(whole, getattr(torch.optim, optimizer)(trains, **options), clip)
    assert fit(split.client, run.optimizer, clip) == expected
    assert run.update_id == NUM_STEPS
    assert_same(run, whole, without_prefix)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_weights(family: str) -> None:
    split = tiny_split(family)
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    client = copy.deepcopy(split.client)
    client.trunk = LocalTrunk(copy.deepcopy(split.trunk))
    run = client.start_training(lr=1e-3)
    expected = fit(whole, torch.optim.AdamW(whole.parameters(), lr=1e-3), clip=1.0)
    assert fit(client, run.optimizer, clip=1.0) == expected
    assert_same(run, whole)


@pytest.mark.parametrize("recompute", [0.0, 0.5, True])
def test_dropout_drawn_by_layer(recompute: float) -> None:
    split = tiny_split("gpt2")
    for model in (split.whole, split.client, split.trunk):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
    lora = LoraConfig(r=4, lora_dropout=0.3)
    torch.manual_seed(5)
    run = split.client.start_training(lora=lora, lr=1e-2, recompute=recompute)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora)
    with seeded_dropout(whole.base_model.model, 11):
        expected = fit(whole, torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2))
    with seeded_dropout(split.client, 11):
        got = fit(split.client, run.optimizer)
    assert got == expected
    assert len(set(got)) > 1
    assert_same(run, whole, without_prefix)
