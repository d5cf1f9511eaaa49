"""One cache for a forward over several sessions, each of which keeps a cache of its own.

Rows of all sessions stand one below the other, their last tokens in the same column: shorter sessions begin later, as
in a left-padded batch, whose mask says so. That is right for every kind of layer, because every row's own layer is
updated with its own tokens (`rows_layers.py`).
"""

from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from splitlearn_core.cache.part_cache import LengthLayer, PartCache
from splitlearn_core.cache.ragged import RowMasks
from splitlearn_core.cache.rows_layers import rows_layer
from splitlearn_core.errors import PartInputError


class RowsCache(PartCache):
    """The caches of several sessions for the time of one forward.

    Args:
        caches: caches of one part, each with tokens in it; they are changed by the forward.
        is_ragged: use the sessions' keys where they lie (`ragged.py`), which the part's attention must be set to.

    Raises:
        PartInputError: an earlier forward of one of them failed.
        UnsupportedModelError: they hold layers of a kind that cannot be put together.
    """

    def __init__(self, caches: Sequence[PartCache], *, is_ragged: bool) -> None:
        # Not PartCache's own: it would make the layers of an empty cache, at every step.
        self.own_layers = caches[0].own_layers
        self._caches = caches
        self._has_failed = any(cache.has_failed for cache in caches)
        num_rows = [cache.num_rows for cache in caches]
        self.num_rows = sum(num_rows)
        joined_len = max(cache.position for cache in caches)
        masks = RowMasks(num_rows) if is_ragged else None
        self._rows_layers = {
            index: rows_layer([cache.layers[index] for cache in caches], num_rows, joined_len, masks)
            for index, layer in caches[0].own_items()
            # Layers without attention may have slots that hold nothing.
            if isinstance(layer, CacheLayerMixin | LinearAttentionCacheLayerMixin)
        }
        self._lengths = {None: LengthLayer()}
        Cache.__init__(self, layers=[self._layer(index) for index in range(len(caches[0].layers))])
        for length in self._lengths.values():
            length.cached_len = joined_len

    def _layer(self, index: int) -> Any:
        if index in self._rows_layers:
            return self._rows_layers[index]
        example = self._caches[0].layers[index]
        if isinstance(example, LengthLayer):
            return self._lengths.setdefault(example.sliding_window, LengthLayer(example.sliding_window))
        # A layer elsewhere without lengths is spoken for by an own one of its kind, where there is one.
        own = self._caches[0].own_items()
        speaks_for = (self._rows_layers[i] for i, layer in own if layer is example and i in self._rows_layers)
        return next(speaks_for, example)

    def advance(self, num_rows: int, num_tokens: int) -> None:
        """Count the tokens of a forward that has just ended in every session.

        Raises:
            PartInputError: the architecture's attention did not look at the keys where they lie.
        """
        if not all(layer.was_read for layer in self._rows_layers.values()):
            raise PartInputError(
                "attention of this architecture cannot use the keys of several sessions where they lie"
            )
        for layer in self._rows_layers.values():
            layer.commit()
        for cache in self._caches:
            cache.advance(cache.num_rows, num_tokens)
        super().advance(num_rows, num_tokens)

    def roll_back(self) -> None:
        """Put every session back as it was before a forward that failed; the sessions may go on."""
        for layer in self._rows_layers.values():
            layer.roll_back()
