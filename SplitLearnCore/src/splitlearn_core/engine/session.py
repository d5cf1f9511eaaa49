"""A session on the engine: its cache, and what it keeps in memory."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from splitlearn_core.cache.growing import grow_in_place
from splitlearn_core.cache.part_cache import PartCache


class EngineSession:
    """One session.

    Args:
        session_id: its name.
        client: whose it is.
        cache: an empty or imported cache of the trunk.
        grows_in_place: whether nothing is copied for a new token. Not where layers are compiled: how much room there is
            comes from the tokens that there are, and a graph would be for one number of them.
    """

    def __init__(self, session_id: str, client: str, cache: PartCache, *, grows_in_place: bool = True) -> None:
        self.session_id = session_id
        self.client = client
        self.cache = grow_in_place(cache) if grows_in_place else cache
        self._is_recording = False

    def start_recording(self) -> None:
        """Keep from now on what a later crop may need."""
        self._is_recording = True
        self.cache.activate_past_recording()

    @property
    def can_join(self) -> bool:
        """Whether its cache can be put together with others now."""
        # States of linear attention that are recorded have lengths of their own.
        has_recorded = self._is_recording and any(
            isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self.cache.own_slots()
        )
        return self.cache.position > 0 and not has_recorded and not self.cache.has_failed

    def kv_bytes(self) -> int:
        """Return the bytes that the cache holds, those of room for tokens to come included."""
        storages = {
            storage.data_ptr(): storage.nbytes()
            for layer in self.cache.own_slots()
            for storage in (tensor.untyped_storage() for tensor in tensors_in(vars(layer).values()))
        }
        return sum(storages.values())


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Iterate over the tensors in values and in the dictionaries and tuples among them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors_in(value.values())
        elif isinstance(value, tuple):
            yield from tensors_in(value)
