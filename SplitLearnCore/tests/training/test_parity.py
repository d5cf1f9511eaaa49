"""A split model trains as the whole one does, to the last bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from splitlearn_core import LocalTrunk
from splitlearn_core.training.seeding import seeded_dropout
from tests.support.families import tiny_split

FAMILIES = ("gpt2", "llama", "qwen3")
NUM_STEPS = 8
OPTIMIZERS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "AdamW": {"lr": 1e-2, "weight_decay": 0.1}}


def batches(num: int, vocab_size: int = 90) -> list[dict[str, torch.Tensor]]:
    """Micro-batches [2, 7], every other left-padded."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(num):
        ids = torch.randint(3, vocab_size, (2, 7), generator=generator)
        mask = torch.ones_like(ids)
        if index % 2:
            mask[0, :3] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return made


def fit(model: nn.Module, optimizer: Any, clip: float | None = None, scale: float = 1.0) -> list[float]:
    """Two micro-batches to a step; return the losses."""
    model.train()
    losses = []
    for index, batch in enumerate(batches(2 * NUM_STEPS)):
        loss = model(**batch).loss
        (loss / 2 * scale).backward()
        losses.append(loss.item())
        if index % 2:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return losses


def whole_weights(run: Any) -> dict[str, torch.Tensor]:
    """What trained, on both sides, by name."""
    own = {
        n: p.detach()
        for n, p in run.model.named_parameters()
        if p.requires_grad and n not in run.passes.proxies.parameters
    }
    far = run.passes.training.read_state() if run.passes.is_trainable else {}
    return own | {n.removeprefix("parameter "): t for n, t in far.items() if n.startswith("parameter ")}


def assert_same(run: Any, whole: nn.Module, names_in_whole: Callable[[str], str] = str) -> None:
    expected = {names_in_whole(n): p.detach() for n, p in whole.named_parameters() if p.requires_grad}
    got = whole_weights(run)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def without_prefix(name: str) -> str:
    return name.removeprefix("base_model.model.")


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


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_drawn_by_layer(recompute: bool) -> None:
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
