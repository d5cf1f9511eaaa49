"""A model that trains evaluates and generates with what it has learned, as the whole one does."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from splitlearn_core import LocalTrunk, SplitModel, UnsupportedOptionError
from splitlearn_core.training.run import TrainingRun
from tests.support.families import Split, padded_prompt, tiny_split
from tests.support.training import assert_evaluates_alike, batches, fit


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2)


def begin(split: Split, recompute: float = 0.0) -> TrainingRun:
    torch.manual_seed(5)
    return split.client.start_training(lora=lora(), lr=5e-2, recompute=recompute)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_with_an_adapter(family: str) -> None:
    split = tiny_split(family)
    plain = LoraConfig(r=4, target_modules="all-linear")
    torch.manual_seed(5)
    run = split.client.start_training(lora=plain, lr=5e-2)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), plain)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=5e-2)
    for _ in range(2):
        assert fit(split.client, run.optimizer, num_steps=3) == fit(whole, optimizer, num_steps=3)
        assert_evaluates_alike(split.client, whole, split.whole)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_all_weights(family: str) -> None:
    split = tiny_split(family)
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    run = split.client.start_training(optimizer="sgd", lr=0.5)
    expected = fit(whole, torch.optim.SGD(whole.parameters(), lr=0.5), num_steps=3)
    assert fit(split.client, run.optimizer, num_steps=3) == expected
    assert_evaluates_alike(split.client, whole, split.whole)


@pytest.mark.parametrize("recompute", [0.0, 0.5, 1.0])
def test_looking_in_between_changes_nothing(recompute: float) -> None:
    def losses(*, looks: bool) -> list[float]:
        split = tiny_split("gpt2")
        run = begin(split, recompute)
        got = []
        for batch in batches(6):
            split.client.train()
            loss = split.client(**batch).loss
            if looks:
                look(split.client)
            loss.backward()
            if looks:
                look(split.client)
            run.optimizer.step()
            run.optimizer.zero_grad()
            got.append(loss.item())
        return got

    def look(client: SplitModel) -> None:
        client.eval()
        with torch.no_grad():
            client(**padded_prompt(90))
        client.generate(**padded_prompt(90), max_new_tokens=2, do_sample=False)
        client.train()

    assert losses(looks=True) == losses(looks=False)


def test_a_gradient_that_would_miss_the_trunk_is_refused() -> None:
    split = tiny_split("llama")
    run = begin(split)
    fit(split.client, run.optimizer, num_steps=1)
    split.client.eval()
    batch = batches(1)[0]
    for options in ({}, {"use_cache": True}):
        with pytest.raises(UnsupportedOptionError, match=r"call model\.train\(\)"):
            split.client(**batch, **options).loss.backward()
    assert run.passes.proxies.is_clear


def test_a_run_that_is_taken_up_evaluates_before_its_first_step(tmp_path: Path) -> None:
    split = tiny_split("llama")
    prompt = padded_prompt(90)
    run = begin(split)
    fit(split.client, run.optimizer, num_steps=3)
    run.save_checkpoint("half", tmp_path)
    split.client.eval()
    with torch.no_grad():
        expected = split.client(**prompt).logits
    run.close()
    with torch.no_grad():
        assert torch.allclose(split.client(**prompt).logits, split.whole(**prompt).logits, atol=1e-5)
    begin(split).resume("half", tmp_path)
    with torch.no_grad():
        assert torch.equal(split.client(**prompt).logits, expected)


def test_where_only_bottom_and_top_train_the_trunk_is_as_it_was() -> None:
    split = tiny_split("llama")
    run = split.client.start_training(train=("bottom", "top"), lora=lora(), lr=0.1)
    fit(split.client, run.optimizer, num_steps=1)
    assert isinstance(split.client.trunk, LocalTrunk)
    assert split.client.trunk_now is split.client.trunk
