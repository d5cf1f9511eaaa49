"""The proof that a cut is exact: the three parts against the uncut model, number by number.

Tensor shapes: B rows, T tokens of the prompt, S tokens that follow, V vocabulary, K tokens that are no padding.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from splitlearn_core.split.cut_copy import cut_apart
from splitlearn_core.split.layers import decoder_config, num_decoder_layers
from splitlearn_core.split.points import SplitPoints, resolve_split_points
from splitlearn_core.split.trial import ROW_LENGTHS, Batch, PartsRunner, Runner, Slice, WholeRunner, padded_batch

TOLERANCE = 5e-6
"""Largest difference, relative to the largest logit, that still counts as another order of float32 sums."""

MIN_EFFECT = 1e-3
"""Below this change of the logits without the Trunk, or with another cache, a check proves nothing."""

SMALL_GRADIENT = 1e-2
"""A parameter's gradients are measured by its own largest one, but at least by this share of the model's largest:
some, of key biases for one, are zero but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far three parts are from their uncut model; every figure is a ratio, and 0.0 where all bits are equal."""

    prefill: float
    """Largest difference of logits over a padded prompt, by the largest logit; the worse of with and without cache."""
    decode: float
    """The same over cached steps of one token."""
    gradients: float
    """Largest difference of gradients, by the largest of the same parameter; 0.0 where they were not compared."""
    trunk_effect: float
    """Change of the prompt's logits when the Trunk is left out, by the largest logit."""
    cache_effect: float
    """Change of the steps' logits when the cached prompt was another one, by the largest logit."""

    @property
    def is_exact(self) -> bool:
        """Whether prefill and gradients agree in every bit."""
        return self.prefill == 0 and self.gradients == 0

    def failure(self, tolerance: float = TOLERANCE) -> str | None:
        """Say in one clause what does not hold; None when the parts equal the model."""
        checks = {
            f"its logits differ by {self.prefill:.1e} of the largest": self.prefill <= tolerance,
            f"its logits with a cache differ by {self.decode:.1e} of the largest": self.decode <= tolerance,
            f"its gradients differ by {self.gradients:.1e} of the largest": self.gradients <= tolerance,
            "its logits do not depend on the Trunk": self.trunk_effect >= MIN_EFFECT,
            "its cached steps do not depend on what is cached": self.cache_effect >= MIN_EFFECT,
        }
        return next((clause for clause, holds in checks.items() if not holds), None)


def check_parity(
    model: PreTrainedModel,
    split_points: Sequence[int],
    num_steps: int = 10,
    row_lengths: Sequence[int] = ROW_LENGTHS,
    with_gradients: bool = True,
) -> Parity:
    """Compare the three parts of a model with the model itself.

    Args:
        model: a causal language model, best in float32 on the CPU with random weights and without dropout.
        split_points: `(a, b)`.
        num_steps: cached decode steps.
        row_lengths: prompt lengths of the rows, left-padded to the longest.
        with_gradients: compare the gradients of all parameters too, for a loss over the prompt.

    Raises:
        SplitPointError: cut points out of order or out of range.
        UnsupportedModelError: the model cannot be cut.
        Exception: whatever a forward of the model or of a part raises.
    """
    parts = cut_apart(model, resolve_split_points(split_points, num_decoder_layers(model.config)))
    batch = padded_batch(decoder_config(model.config).vocab_size, num_steps, row_lengths)
    whole, cut = partial(WholeRunner, model), partial(PartsRunner, parts)
    wanted, got = run_all(whole, batch), run_all(cut, batch)
    without_trunk_KV = run_all(partial(PartsRunner, (parts.bottom, parts.top)), batch.without_steps()).prompt_KV
    return Parity(
        prefill=max(
            difference(got.prompt_KV, wanted.prompt_KV), difference(got.cached_prompt_KV, wanted.cached_prompt_KV)
        ),
        decode=difference(got.steps_KV, wanted.steps_KV),
        gradients=gradient_difference(model, whole, cut, batch) if with_gradients else 0.0,
        trunk_effect=difference(without_trunk_KV, wanted.prompt_KV),
        cache_effect=difference(run_all(whole, batch.with_other_prompt()).steps_KV, wanted.steps_KV),
    )


def failure_at_other_cuts(
    model: PreTrainedModel,
    cuts: Iterable[Sequence[int]],
    num_steps: int = 3,
    row_lengths: Sequence[int] = ROW_LENGTHS,
) -> str | None:
    """Compare prompt and steps at several cuts, without gradients; say in one clause where they differ, or None.

    Raises:
        Exception: whatever a forward of the model or of a part raises.
    """
    batch = padded_batch(decoder_config(model.config).vocab_size, num_steps, row_lengths)
    wanted = run_all(partial(WholeRunner, model), batch)
    for points in cuts:
        got = run_all(partial(PartsRunner, cut_apart(model, SplitPoints(*points))), batch)
        worst = max(difference(ours, theirs) for ours, theirs in zip(got, wanted, strict=True))
        if worst > TOLERANCE:
            return f"its logits differ by {worst:.1e} of the largest when it is cut at {tuple(points)}"
    return None


class Logits(NamedTuple):
    """The logits of one run, one row a token that is no padding."""

    prompt_KV: torch.Tensor
    cached_prompt_KV: torch.Tensor
    steps_KV: torch.Tensor


@torch.no_grad()
def run_all(new_runner: Callable[[], Runner], batch: Batch) -> Logits:
    """Run a model over a prompt without a cache, with one, and step by step on from it."""
    prompt, run = batch.prompt(), new_runner()
    cached_BTV = run(prompt, use_cache=True)
    steps = [run(step, use_cache=True, logits_to_keep=1) for step in batch.steps()]
    steps_BSV = torch.cat(steps, dim=1) if steps else cached_BTV[:, :0]
    uncached_BTV = new_runner()(prompt, use_cache=False)
    return Logits(tokens(uncached_BTV, prompt), tokens(cached_BTV, prompt), steps_BSV.flatten(0, 1))


def gradient_difference(
    model: PreTrainedModel, whole: Callable[[], Runner], cut: Callable[[], Runner], batch: Batch
) -> float:
    """Return the largest difference between the gradients of the whole and of its parts, which share its weights."""
    wanted, got = gradients(model, whole(), batch.prompt()), gradients(model, cut(), batch.prompt())
    floor = SMALL_GRADIENT * max(gradient.abs().max().item() for gradient in wanted.values())
    return max(difference(got[name], wanted[name], floor) for name in wanted)


def gradients(model: PreTrainedModel, run: Runner, prompt: Slice) -> dict[str, torch.Tensor]:
    """Return the gradients of the next-token loss by the name of the parameter; zeros where the loss does not reach."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    logits_KV = tokens(run(prompt, use_cache=False)[:, :-1], prompt.first(-1))
    loss = cross_entropy(logits_KV.float(), tokens(prompt.input_ids_BN[:, 1:], prompt.first(-1)))
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def difference(got: torch.Tensor, wanted: torch.Tensor, floor: float = 0.0) -> float:
    """Return the largest difference by the largest wanted value, or by a floor above it; inf where one is no number."""
    if wanted.numel() == 0:
        return 0.0
    largest = max(wanted.abs().max().item(), floor)
    distance = (got - wanted).abs().max().item()
    if distance == 0:
        return 0.0
    return distance / largest if math.isfinite(distance) and largest > 0 else math.inf


def tokens(values_BNx: torch.Tensor, of: Slice) -> torch.Tensor:
    """Return the values [K, ...] of the tokens that are no padding."""
    return values_BNx[of.attention_mask_BM[:, -values_BNx.shape[1] :].bool()]
