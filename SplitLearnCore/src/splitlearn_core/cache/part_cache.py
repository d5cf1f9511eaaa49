"""The KV cache of a part: as long as the whole model's, filled only where the part has layers."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from splitlearn_core.errors import PartInputError


class LengthLayer(CacheLayerMixin):
    """The slot of an attention layer that lives elsewhere: it knows how long that layer's cache is, and no tensor.

    Models read lengths, mask sizes and positions from slot 0, or from the first slot of a kind, whoever holds it.
    """

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, sliding_window: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.cached_len = 0

    def get_seq_length(self) -> int:
        """Return the number of tokens seen."""
        return self.cached_len

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that the next `query_length` queries see."""
        if self.sliding_window is None:
            return self.cached_len + query_length, 0
        seen = min(self.cached_len, self.sliding_window - 1)
        return seen + query_length, self.cached_len - seen

    def get_max_length(self) -> int:
        """Return the window, or -1 where the length is not bounded."""
        return -1 if self.sliding_window is None else self.sliding_window

    def advance(self, num_tokens: int) -> None:
        """Count tokens that the layer has seen elsewhere."""
        self.cached_len += num_tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens; a negative number, as everywhere in transformers."""
        self.cached_len = max(0, self.cached_len - abs(tokens_to_remove))

    def reset(self) -> None:
        """Forget all tokens."""
        self.cached_len = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Do nothing: all rows have the same length."""

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Do nothing: all rows have the same length."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Do nothing: all rows have the same length."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Raise, because a layer that lives elsewhere stores nothing here."""
        raise AssertionError("a layer that lives in another part wrote to the cache of this one")

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Raise, because a layer that lives elsewhere stores nothing here."""
        self.lazy_initialization(key_states, value_states)


class PartCache(DynamicCache):
    """A `DynamicCache` of the whole model's length, of which a part owns some slots.

    Slots of foreign attention layers count tokens; slots of foreign linear-attention layers stand for an own one
    of their class where there is one, because models ask them whether there is a previous state.

    Args:
        config: configuration of the whole, uncut model.
        own_layers: indices of the layers that the part holds.
    """

    def __init__(self, config: PreTrainedConfig, own_layers: Collection[int]) -> None:
        super().__init__(config=config)
        self.own_layers: tuple[int, ...] = tuple(index for index in range(len(self.layers)) if index in own_layers)
        self._has_failed = False
        self.num_rows = 0
        """Rows of the last forward; 0 before the first."""
        self._lengths: dict[int | None, LengthLayer] = {None: LengthLayer()}
        for index, layer in enumerate(self.layers):
            if index not in self.own_layers:
                self.layers[index] = self._stand_in(layer)

    def _stand_in(self, layer: Any) -> Any:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            return next((own for own in self.own_slots() if type(own) is type(layer)), layer)
        if not isinstance(layer, CacheLayerMixin):
            return layer
        window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
        return self._lengths.setdefault(window, LengthLayer(window))

    def own_slots(self) -> Iterator[Any]:
        """Iterate over the cache layers that this part fills."""
        return (self.layers[index] for index in self.own_layers)

    def own_items(self) -> Iterator[tuple[int, Any]]:
        """Iterate over pairs of layer index and cache layer that this part fills."""
        return ((index, self.layers[index]) for index in self.own_layers)

    @property
    def position(self) -> int:
        """Number of tokens that the cache has seen."""
        return self._lengths[None].cached_len

    @property
    def has_failed(self) -> bool:
        """Whether a forward with this cache failed half-way, so that it must not be used any more."""
        return self._has_failed

    @contextmanager
    def appending(self, num_rows: int, num_tokens: int) -> Iterator[None]:
        """Count the rows and tokens of the forward inside when it ends well; refuse this cache for good when not.

        Raises:
            PartInputError: an earlier forward failed.
        """
        with self.wholly():
            yield
        self.advance(num_rows, num_tokens)

    @contextmanager
    def wholly(self) -> Iterator[None]:
        """Refuse this cache for good when what happens inside fails: some layers may have changed and others not.

        Raises:
            PartInputError: something failed before.
        """
        if self._has_failed:
            raise PartInputError(
                "an earlier forward with this cache failed: some layers hold its tokens and others do not; "
                "start again with a new cache"
            )
        try:
            yield
        except BaseException:
            self._has_failed = True
            raise

    def advance(self, num_rows: int, num_tokens: int) -> None:
        """Count the rows and tokens of a forward that has just ended."""
        self.num_rows = num_rows
        for length in self._lengths.values():
            length.advance(num_tokens)

    def _each_once(self) -> list[Any]:
        return [*self.own_slots(), *self._lengths.values()]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens seen, also where all own layers are linear attention."""
        return self.position if layer_idx == 0 else super().get_seq_length(layer_idx)

    @property
    def is_compileable(self) -> bool:
        """False: slots that only count have no static shape to compile for."""
        return False

    def reset(self) -> None:
        """Forget everything, keeping the object."""
        self._has_failed = False
        for layer in self._each_once():
            layer.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows of every own layer once; `beam_idx` [B'] integer."""
        self.num_rows = len(beam_idx)
        for layer in self._each_once():
            layer.reorder_cache(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens of every own layer once."""
        for layer in self._each_once():
            layer.crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        self.num_rows *= repeats
        for layer in self._each_once():
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` [B'] only."""
        self.num_rows = len(indices)
        for layer in self._each_once():
            layer.batch_select_indices(indices)

    def activate_past_recording(self) -> None:
        """Keep what a later `crop` may need, in layers that would drop it."""
        for layer in self.own_slots():
            if hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()
