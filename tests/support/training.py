"""A training loop for whole and split models alike, and what to compare behind it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from splitlearn_core import SplitModel
from tests.support.families import padded_prompt

NUM_STEPS = 8


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


def fit(
    model: nn.Module,
    optimizer: Any,
    clip: float | None = None,
    scale: float = 1.0,
    num_steps: int = NUM_STEPS,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> list[float]:
    """Two micro-batches to a step; return the losses."""
    model.train()
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    losses = []
    for index, batch in enumerate(batches(2 * num_steps)):
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            loss = model(**batch).loss
        scaler.scale(loss / 2 * scale).backward()
        losses.append(loss.item())
        if index % 2:
            if clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
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


@torch.no_grad()
def assert_evaluates_alike(client: SplitModel, whole: Any, base: Any) -> None:
    """In evaluation mode a split model computes and generates as a whole one, and not as the one before training."""
    for model in (client, whole, base):
        model.eval()
    prompt = padded_prompt(90)
    expected_BTV = whole(**prompt).logits
    assert torch.equal(client(**prompt).logits, expected_BTV)
    assert not torch.allclose(base(**prompt).logits, expected_BTV, atol=1e-2)
    options = {"max_new_tokens": 12, "do_sample": False}
    tokens = whole.generate(**prompt, **options)
    assert torch.equal(client.generate(**prompt, **options), tokens)
    assert not torch.equal(base.generate(**prompt, **options), tokens)
    beams = {**options, "num_beams": 3}
    assert torch.equal(client.generate(**prompt, **beams), whole.generate(**prompt, **beams))
