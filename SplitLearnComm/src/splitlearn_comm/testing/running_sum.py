"""A host with a real cache, and no model."""

from __future__ import annotations

import torch

from splitlearn_comm.errors import InvalidRequestError, SessionNotFoundError
from splitlearn_comm.host import SessionHost, refuse_adapter
from splitlearn_comm.messages import (
    Action,
    CacheUse,
    ComputeCall,
    ComputeResult,
    Crop,
    Forward,
    KVEntries,
    KVEntry,
    Reorder,
    ServiceInfo,
    StartRecording,
)


class RunningSumHost(SessionHost):
    """Gives back, for each token, the sum of it and all tokens before it: causal attention at its simplest.

    B batch, T new tokens, P tokens in the cache, H hidden size. Masked tokens count as zero.

    Args:
        hidden_size: H.
        max_positions: Tokens a sequence may have.
        fingerprint: What it says about itself.
    """

    def __init__(self, hidden_size: int = 4, max_positions: int = 64, fingerprint: str = "running-sum") -> None:
        self._info = ServiceInfo(
            name="running sum",
            fingerprint=fingerprint,
            hidden_size=hidden_size,
            dtype=torch.float32,
            max_positions=max_positions,
            cache_kinds=("inputs",),
            stateful=True,
        )
        self._caches_BPH: dict[str, torch.Tensor | None] = {}

    def get_info(self) -> ServiceInfo:
        """Hidden size, positions and fingerprint as given."""
        return self._info

    @property
    def num_sessions(self) -> int:
        """Sessions open now."""
        return len(self._caches_BPH)

    async def cache_use(self) -> CacheUse:
        """Bytes of all caches; no limit."""
        return CacheUse(num_bytes=sum(cache.nbytes for cache in self._caches_BPH.values() if cache is not None))

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Sum from the cache of the call on."""
        refuse_adapter(call.adapter)
        past_BPH = _inputs_of(call.past_key_values) if call.past_key_values else None
        output_BTH, inputs_BPH = _summed(past_BPH, call.tensor, call.attention_mask)
        if not call.use_cache:
            return ComputeResult(output_BTH)
        entry = KVEntry(0, "inputs", {"inputs": inputs_BPH})
        return ComputeResult(output_BTH, KVEntries((entry,), inputs_BPH.shape[1]))

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        """Begin with an empty cache."""
        refuse_adapter(adapter)
        self._caches_BPH[session_id] = None

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Sum on, or change the cache."""
        if session_id not in self._caches_BPH:
            raise SessionNotFoundError(f"the host has no session {session_id}")
        cache_BPH = self._caches_BPH[session_id]
        match action:
            case Forward(hidden_BTH, mask_BK, _):
                output_BTH, self._caches_BPH[session_id] = _summed(cache_BPH, hidden_BTH, mask_BK)
                return output_BTH
            case StartRecording() | Crop(0):
                pass
            case Reorder(indices) if cache_BPH is not None:
                self._caches_BPH[session_id] = cache_BPH[list(indices)]
            case Crop(num_tokens) if cache_BPH is not None:
                self._caches_BPH[session_id] = cache_BPH[:, : cache_BPH.shape[1] - num_tokens]
            case _:
                raise InvalidRequestError(f"{action} before the first forward")
        return None

    async def export_session(self, session_id: str) -> KVEntries:
        """The inputs seen so far."""
        inputs_BPH = self._caches_BPH[session_id]
        if inputs_BPH is None:
            return KVEntries((), 0)
        return KVEntries((KVEntry(0, "inputs", {"inputs": inputs_BPH}),), inputs_BPH.shape[1])

    async def import_session(self, session_id: str, cache: KVEntries) -> None:
        """Go on from such inputs."""
        self._caches_BPH[session_id] = _inputs_of(cache) if cache.position else None

    async def close_session(self, session_id: str) -> None:
        """Forget the cache."""
        self._caches_BPH.pop(session_id, None)


def _summed(
    past_BPH: torch.Tensor | None, hidden_BTH: torch.Tensor, mask_BK: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the new tokens, and the cache after them."""
    if past_BPH is not None and _rows(past_BPH) != _rows(hidden_BTH):
        raise InvalidRequestError(
            f"a cache of other rows: expected {_rows(hidden_BTH)} as of the hidden states, came {_rows(past_BPH)}"
        )
    inputs_BPH = hidden_BTH if past_BPH is None else torch.cat((past_BPH, hidden_BTH), dim=1)
    visible_BPH = inputs_BPH if mask_BK is None else inputs_BPH * mask_BK.ne(0).unsqueeze(-1)
    return visible_BPH.cumsum(dim=1)[:, -hidden_BTH.shape[1] :], inputs_BPH


def _inputs_of(cache: KVEntries) -> torch.Tensor:
    if len(cache.entries) != 1 or "inputs" not in cache.entries[0].tensors:
        raise InvalidRequestError("a cache that is not of a running sum: expected one entry with a tensor 'inputs'")
    inputs_BPH = cache.entries[0].tensors["inputs"]
    if inputs_BPH.dim() != 3 or inputs_BPH.shape[1] != cache.position:
        shape = list(inputs_BPH.shape)
        raise InvalidRequestError(f"a cache of the wrong shape: expected inputs [B, {cache.position}, H], came {shape}")
    return inputs_BPH


def _rows(tensor_BTH: torch.Tensor) -> tuple[int, int, torch.dtype]:
    """What a cache and the tokens after it have in common: B, H and the dtype."""
    return tensor_BTH.shape[0], tensor_BTH.shape[2], tensor_BTH.dtype
