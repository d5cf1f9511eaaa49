"""Attention of sessions of different lengths, each over its own keys: nothing is padded, nothing is copied together.

The layers of a forward over several sessions are run once for all rows, but for attention. There the keys and values of
each session are used where they lie. transformers looks attention functions up by name, and hands on what the cache
returned: the tensor that `RowsAttentionLayer.update` returns carries the sessions' own tensors as an attribute, and the
functions here look for it. Where there is none they are the function whose name they add to.

Tensor shapes: B rows of all sessions, R rows of one, N heads, T new tokens, K cached and new tokens, D head size.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from splitlearn_core.errors import PartInputError

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]

PREFIX: Final = "splitlearn|"
CAN_BE_RAGGED: Final = ("sdpa", "eager")
"""Implementations of attention that take the keys of one session as they lie."""

MAX_GROUPED_SIZE: Final = 256
"""Largest head for which transformers leaves it to torch to share keys among queries."""

_ATTRIBUTE: Final = "_splitlearn_ragged"


class RaggedKeys:
    """Keys and values of several sessions, each pair [R, N, K, D] with an R and a K of its own."""

    def __init__(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], masks: "RowMasks") -> None:
        self._pairs = pairs
        self._masks = masks
        self.is_taken = False
        """Whether attention has looked at them: otherwise it has looked at something else."""

    def attend(
        self, attention: Attention, module: nn.Module, query_BNTD: torch.Tensor, mask: torch.Tensor | None, **given: Any
    ) -> tuple[torch.Tensor, None]:
        """Return the outputs [B, T, N, D] of the sessions one below the other."""
        self.is_taken = True
        own_masks = self._masks.of(mask, [keys.shape[2] for keys, _ in self._pairs])
        queries = query_BNTD.split_with_sizes([keys.shape[0] for keys, _ in self._pairs])
        if attention is sdpa_attention_forward and self._is_plain(query_BNTD, own_masks, given):
            return self._attend_plain(queries, given.get("scaling")), None
        outputs = [
            attention(module, query, keys, values, own_mask, **given)[0]
            for query, (keys, values), own_mask in zip(queries, self._pairs, own_masks, strict=True)
        ]
        return torch.cat(outputs), None

    def _is_plain(
        self, query_BNTD: torch.Tensor, masks: Sequence[torch.Tensor | None], given: Mapping[str, Any]
    ) -> bool:
        """Whether every session has one query that sees all its keys, and the architecture wants nothing special."""
        keys, values = self._pairs[0]
        return (
            query_BNTD.shape[2] == 1
            and keys.shape[3] == values.shape[3] <= MAX_GROUPED_SIZE
            and all(mask is None for mask in masks)
            and not any(given.get(name) is not None for name in ("position_bias", "softcap", "cache"))
            and not given.get("dropout")
        )

    def _attend_plain(self, queries: Sequence[torch.Tensor], scaling: float | None) -> torch.Tensor:
        # What transformers' function does in this case, without what it does around it: for a short session that
        # costs as much as the attention itself, in every layer.
        is_grouped = queries[0].shape[1] != self._pairs[0][0].shape[1]
        outputs = [
            scaled_dot_product_attention(query, keys, values, scale=scaling, enable_gqa=is_grouped)
            for query, (keys, values) in zip(queries, self._pairs, strict=True)
        ]
        return torch.cat(outputs).transpose(1, 2)


class RowMasks:
    """The masks of one forward, cut into those of its sessions once and not in every layer.

    Args:
        num_rows: rows of each session.
    """

    def __init__(self, num_rows: Sequence[int]) -> None:
        self._num_rows = num_rows
        self._cut: dict[tuple[int, ...], tuple[torch.Tensor | None, list[torch.Tensor | None]]] = {}

    def of(self, mask: torch.Tensor | None, num_keys: Sequence[int]) -> list[torch.Tensor | None]:
        """Return the mask [R, 1, T, K] of each session; None where there is none or where nothing is masked."""
        if mask is None:
            return [None] * len(self._num_rows)
        key = (id(mask), *num_keys)
        if key not in self._cut:
            self._cut[key] = (mask, list(self._slices(mask, num_keys)))
        return self._cut[key][1]

    def _slices(self, mask: torch.Tensor, num_keys: Sequence[int]) -> Iterator[torch.Tensor | None]:
        begin = 0
        for num_rows, length in zip(self._num_rows, num_keys, strict=True):
            rows = mask if mask.shape[0] == 1 else mask[begin : begin + num_rows]
            own = rows[..., mask.shape[-1] - length :]
            # With one query nothing is hidden by causality: a mask that hides nothing may go, with more it may not.
            yield None if own.shape[-2] == 1 and hides_nothing(own) else own
            begin += num_rows


def hides_nothing(mask: torch.Tensor) -> bool:
    """Whether a mask, boolean or to be added, lets every query see every key."""
    return bool(mask.all() if mask.dtype == torch.bool else (mask == 0).all())


def carrying(tensor: torch.Tensor, ragged: RaggedKeys) -> torch.Tensor:
    """Return the tensor with the keys of sessions attached to it."""
    setattr(tensor, _ATTRIBUTE, ragged)
    return tensor


def _ragged_eager(module: nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **given: Any) -> Any:
    # Every architecture has an eager function of its own, next to its attention layer.
    eager: Attention = sys.modules[type(module).__module__].eager_attention_forward
    return _dispatch(eager, module, query, key, *args, **given)


def _ragged_sdpa(module: nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **given: Any) -> Any:
    return _dispatch(sdpa_attention_forward, module, query, key, *args, **given)


def _dispatch(
    attention: Attention,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **given: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    ragged: RaggedKeys | None = getattr(key, _ATTRIBUTE, None)
    if ragged is None:
        return attention(module, query, key, value, attention_mask, **given)
    return ragged.attend(attention, module, query, attention_mask, **given)


for _name, _function in zip(CAN_BE_RAGGED, (_ragged_sdpa, _ragged_eager), strict=True):
    AttentionInterface.register(PREFIX + _name, _function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


class AttentionSwitch:
    """Turns ragged attention on in a model for one forward.

    Args:
        model: the model; its configurations are changed inside `ragged` and put back behind it.
    """

    def __init__(self, model: nn.Module) -> None:
        configs = (getattr(module, "config", None) for module in model.modules())
        found = {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}
        self._configs = tuple(found.values())

    @property
    def is_possible(self) -> bool:
        """Whether all attention of the model is of a kind that can be ragged."""
        return all(config._attn_implementation in CAN_BE_RAGGED for config in self._configs)

    @contextmanager
    def ragged(self) -> Iterator[None]:
        """Look attention functions up under the names registered here, inside.

        Raises:
            PartInputError: the model has been told meanwhile to use another kind of attention.
        """
        if not self.is_possible:
            raise PartInputError("attention of this model cannot use the keys of several sessions where they lie")
        before = [(config, config._attn_implementation) for config in self._configs]
        try:
            for config, name in before:
                config._attn_implementation = PREFIX + name
            yield
        finally:
            for config, name in before:
                config._attn_implementation = name
