"""Caches of a trunk to entries that travel, and back; and calls whose caches do.

Tensor shapes: B rows, T new tokens, H hidden size.
"""

import torch

from splitlearn_comm import (
    ComputeCall,
    ComputeResult,
    InvalidRequestError,
    KVEntries,
    KVEntry,
    UnsupportedOperationError,
)
from splitlearn_core import Trunk, UnsupportedModelError
from splitlearn_core.cache.entries import LayerState, export_cache, import_cache
from splitlearn_core.cache.part_cache import PartCache
from splitlearn_manager.runtime.cache_form import CacheForm


class CacheTransfer:
    """Imports and exports caches of one trunk; on the trunk's own thread.

    Args:
        trunk: the part.
    """

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self._form: CacheForm | None = None

    @torch.inference_mode()
    def compute(self, call: ComputeCall) -> ComputeResult:
        """Run the layers once; the cache, if any, comes and goes with the call.

        Raises:
            InvalidRequestError: the cache is not of this trunk.
            UnsupportedOperationError: the architecture caches something that cannot travel.
        """
        cache = None
        if call.use_cache or call.past_key_values is not None:
            cache = self.to_cache(call.past_key_values)
        device = self._trunk.device
        output_BTH = self._trunk(
            call.tensor.to(device),
            call.attention_mask if call.attention_mask is None else call.attention_mask.to(device),
            call.position_ids if call.position_ids is None else call.position_ids.to(device),
            past_key_values=cache,
        )
        assert isinstance(output_BTH, torch.Tensor)
        return ComputeResult(output_BTH, self.to_entries(cache) if cache is not None and call.use_cache else None)

    @torch.inference_mode()
    def to_cache(self, entries: KVEntries | None) -> PartCache:
        """Return a cache of the trunk that holds what travelled, an empty one for None.

        Raises:
            InvalidRequestError: it is not of this trunk.
        """
        cache: PartCache = self._trunk.new_cache()
        if entries is None:
            return cache
        device = self._trunk.device
        states = [
            LayerState(layer=e.layer, kind=e.kind, tensors={n: t.to(device) for n, t in e.tensors.items()})
            for e in entries.entries
        ]
        if entries.position:
            self._cache_form().check(entries)
        try:
            import_cache(cache, states, entries.position)
        except ValueError as error:
            raise InvalidRequestError(f"past_key_values are not those of this trunk: {error}") from error
        return cache

    def to_entries(self, cache: PartCache) -> KVEntries:
        """Return what travels of a cache.

        Raises:
            UnsupportedOperationError: the architecture caches something that cannot.
        """
        try:
            return entries_of(export_cache(cache), cache.position)
        except UnsupportedModelError as error:
            raise UnsupportedOperationError(str(error)) from error

    def _cache_form(self) -> CacheForm:
        if self._form is None:
            self._form = CacheForm(self.to_entries(one_token(self._trunk)))
        return self._form


def entries_of(states: list[LayerState], position: int) -> KVEntries:
    """Return the states of a cache's layers in the wire's words."""
    return KVEntries(tuple(KVEntry(s.layer, s.kind, dict(s.tensors)) for s in states), position)


@torch.inference_mode()
def one_token(trunk: Trunk) -> PartCache:
    """Return a cache with one row and one token in it."""
    cache: PartCache = trunk.new_cache()
    hidden_BTH = torch.zeros(1, 1, trunk.hidden_size, dtype=trunk.dtype, device=trunk.device)
    trunk(hidden_BTH, past_key_values=cache)
    return cache
