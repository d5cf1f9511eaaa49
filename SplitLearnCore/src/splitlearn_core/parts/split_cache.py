"""The KV cache of the client model: its own layers here, the trunk's in a session elsewhere."""

import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from transformers import PreTrainedConfig

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.errors import UnsupportedOptionError
from splitlearn_core.parts.port import TrunkSession


class SplitCache(PartCache):
    """A `PartCache` that passes every reorder, crop and recording on to the trunk's session.

    The session opens with the first tokens and is freed by `close`, or when this object is garbage-collected.
    """

    def __init__(
        self, config: PreTrainedConfig, own_layers: Collection[int], open_session: Callable[[], TrunkSession]
    ) -> None:
        super().__init__(config, own_layers)
        self._open_session = open_session
        self._session: TrunkSession | None = None

    @property
    def session(self) -> TrunkSession:
        """The trunk's half of this cache, opened when it is first asked for."""
        if self._session is None:
            self._session = self._open_session()
            self._finalizer = weakref.finalize(self, self._session.abandon)
        return self._session

    def close(self) -> None:
        """Free the trunk's half. May be called twice; the cache must not be used afterwards."""
        if self._session is not None and self._finalizer.detach() is not None:
            self._session.close()

    def reset(self) -> None:
        """Forget everything; the next tokens open a new session."""
        self.close()
        self._session = None
        super().reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the rows on both sides; `beam_idx` [B] integer."""
        with self.wholly():
            if self.position:
                self.session.reorder(beam_idx)
            super().reorder_cache(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens on both sides."""
        num_tokens = min(-tokens_to_remove, self.position)
        with self.wholly():
            self.session.crop(num_tokens)
            super().crop(-num_tokens)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times on both sides."""
        rows = torch.arange(self.num_rows).repeat_interleave(repeats)
        with self.wholly():
            if self.position:
                self.session.reorder(rows)
            super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` [B'] on both sides."""
        with self.wholly():
            if self.position:
                self.session.reorder(indices)
            super().batch_select_indices(indices)

    def activate_past_recording(self) -> None:
        """Keep what a later `crop` may need on both sides."""
        super().activate_past_recording()
        self.session.start_recording()

    def __deepcopy__(self, memo: dict[int, Any]) -> "SplitCache":
        raise UnsupportedOptionError(
            "the cache of a split model cannot be copied: its trunk half lives in a session; "
            "run the prompt again to get a second cache"
        )
