"""What a cut is tried on: a padded prompt with more tokens to come, and two ways to run a model over it.

Tensor shapes: B rows, T tokens of the prompt, S tokens that follow one by one, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from splitlearn_core.parts.part import Part, mask_of_new_tokens
from splitlearn_core.parts.top import Top

ROW_LENGTHS = (13, 5, 10)
"""Prompt lengths of the rows: different ones, so that there is padding, and longer than the windows of tiny models."""

PADDING_TOKEN = 0
FIRST_ORDINARY_TOKEN = 4
"""Below it are the special tokens of tiny configurations."""


class Batch(NamedTuple):
    """A left-padded prompt and the tokens that follow it; the positions are those that `generate` makes."""

    input_ids_BL: torch.Tensor
    """[B, T + S] int64."""
    attention_mask_BL: torch.Tensor
    """[B, T + S] int64, 1 for tokens."""
    position_ids_BL: torch.Tensor
    """[B, T + S] int64."""
    prompt_len: int
    """T."""

    def prompt(self) -> "Slice":
        """Return the tokens of the prompt."""
        return self._slice(0, self.prompt_len)

    def steps(self) -> list["Slice"]:
        """Return the tokens after the prompt, one at a time."""
        return [self._slice(end - 1, end) for end in range(self.prompt_len + 1, self.input_ids_BL.shape[1] + 1)]

    def without_steps(self) -> "Batch":
        """Return a batch that ends with the prompt."""
        return Batch(*self.prompt(), self.prompt_len)

    def with_other_prompt(self) -> "Batch":
        """Return a batch with the same steps after prompts that are spelt backwards."""
        ids_BL = self.input_ids_BL.clone()
        ids_BL[:, : self.prompt_len] = ids_BL[:, : self.prompt_len].flip(1)
        return self._replace(input_ids_BL=ids_BL.masked_fill(self.attention_mask_BL == 0, PADDING_TOKEN))

    def _slice(self, begin: int, end: int) -> "Slice":
        return Slice(
            self.input_ids_BL[:, begin:end], self.attention_mask_BL[:, :end], self.position_ids_BL[:, begin:end]
        )


class Slice(NamedTuple):
    """The inputs of one forward: N new tokens after P cached ones."""

    input_ids_BN: torch.Tensor
    attention_mask_BM: torch.Tensor
    """[B, P + N]."""
    position_ids_BN: torch.Tensor

    def first(self, end: int) -> "Slice":
        """Return the inputs up to an index."""
        return Slice(self.input_ids_BN[:, :end], self.attention_mask_BM[:, :end], self.position_ids_BN[:, :end])


def padded_batch(vocab_size: int, num_steps: int, row_lengths: Sequence[int] = ROW_LENGTHS, seed: int = 0) -> Batch:
    """Draw random tokens for rows of different lengths; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    prompt_len = max(row_lengths)
    shape = (len(row_lengths), prompt_len + num_steps)
    ids_BL = torch.randint(FIRST_ORDINARY_TOKEN, vocab_size, shape, generator=generator)
    padding_B1 = torch.tensor([prompt_len - length for length in row_lengths]).unsqueeze(1)
    mask_BL = (torch.arange(shape[1]) >= padding_B1).long()
    positions_BL = (mask_BL.cumsum(-1) - 1).masked_fill(mask_BL == 0, 0)
    return Batch(ids_BL.masked_fill(mask_BL == 0, PADDING_TOKEN), mask_BL, positions_BL, prompt_len)


class Runner(Protocol):
    """A model, whole or cut, of which every forward goes on from the one before where it keeps a cache."""

    def __call__(self, new: Slice, *, use_cache: bool, logits_to_keep: int = 0) -> torch.Tensor:
        """Return the logits [B, N, V] of the new tokens, or of the last `logits_to_keep`."""
        ...


class WholeRunner:
    """Runs an uncut model the way `generate` does."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_name = "past_key_values" if "past_key_values" in self._parameters else "cache_params"
        self._cache = DynamicCache(config=model.config)

    def __call__(self, new: Slice, *, use_cache: bool, logits_to_keep: int = 0) -> torch.Tensor:
        """Return the logits [B, N, V] of the new tokens, or of the last `logits_to_keep`."""
        inputs: dict[str, Any] = {
            "input_ids": new.input_ids_BN,
            "attention_mask": new.attention_mask_BM,
            "position_ids": new.position_ids_BN,
            "use_cache": use_cache,
            self._cache_name: self._cache if use_cache else None,
            "logits_to_keep": logits_to_keep,
        }
        if self._cache_name == "cache_params":
            # As in these models' own preparation for `generate`: padding lies before the tokens of a step.
            inputs["attention_mask"] = mask_of_new_tokens(**inputs)
        output = self._model(**{name: value for name, value in inputs.items() if name in self._parameters})
        logits_BNV: torch.Tensor = output.logits
        return logits_BNV[:, -logits_to_keep:]


class PartsRunner:
    """Runs parts one after the other, each with its own cache."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self._caches: list[Any] = [None] * len(self._parts)

    def __call__(self, new: Slice, *, use_cache: bool, logits_to_keep: int = 0) -> torch.Tensor:
        """Return the logits [B, N, V] of the new tokens, or of the last `logits_to_keep`."""
        tensor = new.input_ids_BN
        for index, part in enumerate(self._parts):
            inputs: dict[str, Any] = {
                "attention_mask": new.attention_mask_BM,
                "position_ids": new.position_ids_BN,
                "past_key_values": self._caches[index],
                "use_cache": use_cache,
            }
            if isinstance(part, Top):
                inputs["logits_to_keep"] = logits_to_keep
            output = part(tensor, **inputs)
            tensor, self._caches[index] = output if use_cache else (output, None)
        return tensor[:, -logits_to_keep:]
