"""A cache layer for plain attention that appends in place: nothing that is cached is copied for a new token.

Tensor shapes: B rows, N heads, P cached tokens, T new tokens, D head size, C tokens there is room for.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from splitlearn_core.cache.part_cache import PartCache

MIN_ROOM = 64
"""Tokens that the first room is for; every further one has twice as many, so that growing costs a copy a token."""


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` whose keys and values [B, N, P, D] are the beginning of a larger room [B, N, C, D].

    What `update` returned is valid until the next `crop`, after which the same places are written again. Without
    gradients only: a graph that was recorded would miss its tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rooms: tuple[torch.Tensor, torch.Tensor] | None = None
        self._in_room: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, N, T, D] of new tokens; return those of all tokens, [B, N, P + T, D]."""
        num_tokens = key_states.shape[2]
        # Whoever else assigned keys (an import, a reorder) left the room: what lies there is no longer ours.
        cached_len = self._in_room.shape[2] if self.keys is self._in_room is not None else self.get_seq_length()
        end = cached_len + num_tokens
        keys, values = self._rooms_for(key_states, value_states, end)
        # `narrow` and not an index: this runs for every layer of every session, and an index costs twice as much.
        keys.narrow(2, cached_len, num_tokens).copy_(key_states)
        values.narrow(2, cached_len, num_tokens).copy_(value_states)
        self.keys = self._in_room = keys.narrow(2, 0, end)
        self.values = values.narrow(2, 0, end)
        return self.keys, self.values

    def _rooms_for(
        self, key_states: torch.Tensor, value_states: torch.Tensor, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._rooms is not None and self.keys is self._in_room and end <= self._rooms[0].shape[2]:
            return self._rooms
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        size = max(MIN_ROOM, 1 << (end - 1).bit_length())
        self._rooms = new_room(key_states, size), new_room(value_states, size)
        if self.keys is not None and self.values is not None and self.keys.numel():
            self._rooms[0].narrow(2, 0, self.keys.shape[2]).copy_(self.keys)
            self._rooms[1].narrow(2, 0, self.values.shape[2]).copy_(self.values)
        return self._rooms

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens; the room stays."""
        is_in_room = self.keys is self._in_room
        super().crop(tokens_to_remove)
        if is_in_room:
            self._in_room = self.keys

    def reset(self) -> None:
        """Forget everything, the room too."""
        super().reset()
        self._rooms = self._in_room = None


def new_room(states: torch.Tensor, size: int) -> torch.Tensor:
    """Return memory [B, N, C, D] for states [B, N, T, D] of `size` tokens, of unspecified content."""
    num_rows, num_heads, _, head_size = states.shape
    return states.new_empty(num_rows, num_heads, size, head_size)


def grow_in_place(cache: PartCache) -> PartCache:
    """Replace the plain attention layers of a cache by growing ones with the same tokens; return the cache."""
    for index, layer in cache.own_items():
        if type(layer) is DynamicLayer:
            growing = cache.layers[index] = GrowingLayer()
            vars(growing).update(vars(layer))
    return cache
