"""The cache layers of one forward over several sessions: each of them speaks for one layer of every session.

Tensor shapes: B rows of all sessions, R rows of one, N heads, T new tokens, K cached and new tokens, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from splitlearn_core.cache.growing import GrowingLayer
from splitlearn_core.cache.part_cache import LengthLayer
from splitlearn_core.cache.ragged import RaggedKeys, RowMasks, carrying
from splitlearn_core.errors import UnsupportedModelError


class RowsAttentionLayer(LengthLayer):
    """Keys and values of all sessions.

    The tokens of each session are appended to its own layer. What comes back is one tensor, padded on the left to the
    longest, or, with `masks`, the sessions' own tensors for ragged attention.

    Args:
        layers: the sessions' own layers.
        num_rows: rows of each session.
        joined_len: tokens cached in the longest session.
        masks: where ragged attention keeps the masks of this forward; None to pad.
    """

    def __init__(
        self, layers: Sequence[DynamicLayer], num_rows: Sequence[int], joined_len: int, masks: RowMasks | None
    ) -> None:
        super().__init__(getattr(layers[0], "sliding_window", None))
        self.cached_len = joined_len
        self._layers, self._num_rows, self._masks = layers, num_rows, masks
        self._ragged: RaggedKeys | None = None
        self._before: list[tuple[DynamicLayer, dict[str, Any]]] = []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append keys and values [B, N, T, D] to the sessions; return what attention needs of all of them."""
        keys, values = (t.split_with_sizes(self._num_rows) for t in (key_states, value_states))
        pairs = []
        for layer, own_keys, own_values in zip(self._layers, keys, values, strict=True):
            self.remember(layer)
            pairs.append(layer.update(own_keys, own_values, *args, **kwargs))
        if self._masks is not None:
            self._ragged = RaggedKeys(pairs, self._masks)
            return carrying(key_states, self._ragged), value_states
        length = self.get_mask_sizes(key_states.shape[-2])[0]
        return tuple(left_padded([pair[which] for pair in pairs], length, dim=-2) for which in (0, 1))

    def remember(self, layer: DynamicLayer) -> None:
        """Keep what a layer is before it changes: its tensors are replaced by an update, not written over."""
        self._before.append((layer, dict(vars(layer))))

    def roll_back(self) -> None:
        """Put the sessions' layers back as they were before this forward."""
        for layer, fields in reversed(self._before):
            vars(layer).clear()
            vars(layer).update(fields)

    def commit(self) -> None:
        """Do nothing: the sessions' layers have their tokens."""

    @property
    def was_read(self) -> bool:
        """Whether attention has looked at what `update` returned, as far as can be known."""
        return self._ragged is None or self._ragged.is_taken


class RowsIndexedLayer(RowsAttentionLayer):
    """Keys and values of all sessions, and the keys of their indexers."""

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Append indexer keys [B, T, D]; return all, [B, K, D], padded on the left."""
        parts = []
        for layer, own in zip(self._layers, indexer_key_states.split_with_sizes(self._num_rows), strict=True):
            assert isinstance(layer, DynamicIndexedLayer)
            self.remember(layer)
            parts.append(layer.update_indexer(own))
        return left_padded(parts, max(part.shape[1] for part in parts), dim=1)


class RowsLinearLayer(LinearAttentionLayer):
    """The states of all sessions, put together before the forward and handed back behind it.

    Args:
        layers: the sessions' own layers, all with a previous state.
        num_rows: rows of each session.
    """

    def __init__(self, layers: Sequence[LinearAttentionLayer], num_rows: Sequence[int]) -> None:
        first = layers[0]
        super().__init__(first.number_of_states)
        self._linear_layers, self._rows = layers, num_rows
        self.device, self.dtype = first.device, first.dtype
        for name in FLAGS:
            setattr(self, name, dict(getattr(first, name)))
        for name in STATES:
            for index, state in getattr(first, name).items():
                if state is not None:
                    getattr(self, name)[index] = torch.cat([getattr(layer, name)[index] for layer in layers])

    def commit(self) -> None:
        """Hand every session its rows of the states."""
        for name in STATES:
            for index, state in getattr(self, name).items():
                parts = [None] * len(self._rows) if state is None else state.split_with_sizes(self._rows)
                for layer, part in zip(self._linear_layers, parts, strict=True):
                    getattr(layer, name)[index] = part if part is None else part.clone()
        for layer in self._linear_layers:
            for name in FLAGS:
                setattr(layer, name, dict(getattr(self, name)))

    def roll_back(self) -> None:
        """Do nothing: the sessions' layers were not touched."""

    @property
    def was_read(self) -> bool:
        """True: nothing is handed out under another name."""
        return True


STATES = ("conv_states", "recurrent_states")
FLAGS = ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state", "conv_kernel_size")


class RowsHybridLayer(RowsAttentionLayer, RowsLinearLayer):
    """Keys, values and states of all sessions."""

    def __init__(self, layers: Sequence[Any], num_rows: Sequence[int], joined_len: int, masks: RowMasks | None) -> None:
        RowsAttentionLayer.__init__(self, layers, num_rows, joined_len, masks)
        RowsLinearLayer.__init__(self, layers, num_rows)

    def commit(self) -> None:
        """Hand every session its rows of the states."""
        RowsLinearLayer.commit(self)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Make room for a state that the sessions have not had yet."""
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)


ATTENTION: dict[type, type[RowsAttentionLayer]] = {
    DynamicLayer: RowsAttentionLayer,
    GrowingLayer: RowsAttentionLayer,
    DynamicSlidingWindowLayer: RowsAttentionLayer,
    DynamicIndexedLayer: RowsIndexedLayer,
    LinearAttentionAndFullAttentionLayer: RowsHybridLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: RowsHybridLayer,
}
"""Layers with keys and values, and what speaks for them."""


def rows_layer(
    layers: Sequence[Any], num_rows: Sequence[int], joined_len: int, masks: RowMasks | None
) -> RowsAttentionLayer | RowsLinearLayer:
    """Return the layer that speaks for one layer of every session.

    Raises:
        UnsupportedModelError: nothing here knows how to put such layers together.
    """
    kind = type(layers[0])
    if kind in ATTENTION:
        return ATTENTION[kind](layers, num_rows, joined_len, masks)
    if kind is LinearAttentionLayer:
        return RowsLinearLayer(layers, num_rows)
    raise UnsupportedModelError(f"caches of kind {kind.__name__} cannot be put together; run these sessions one by one")


def left_padded(tensors: Sequence[torch.Tensor], length: int, dim: int) -> torch.Tensor:
    """Put tensors one below the other, each with zeros before it in dimension `dim` up to a length."""
    after = tensors[0].dim() - 1 - dim % tensors[0].dim()
    return torch.cat([pad(tensor, (0, 0) * after + (length - tensor.shape[dim], 0)) for tensor in tensors])
