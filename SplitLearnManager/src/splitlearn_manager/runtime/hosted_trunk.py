"""A trunk as a session host: many sessions, one model thread.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

import logging
from functools import partial

import torch

import splitlearn_core
from splitlearn_comm import (
    Action,
    ComputeCall,
    ComputeResult,
    Crop,
    Forward,
    KVEntries,
    KVEntry,
    Reorder,
    ServiceInfo,
    SessionHost,
    StartRecording,
)
from splitlearn_comm.errors import (
    InvalidRequestError,
    SessionNotFoundError,
    UnsupportedOperationError,
)
from splitlearn_comm.worker import WorkerThread
from splitlearn_core import Trunk, UnsupportedModelError
from splitlearn_core.cache.entries import LayerState, export_cache, import_cache
from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.parts.port import trunk_info
from splitlearn_manager.runtime.cache_form import CacheForm
from splitlearn_manager.runtime.inline_worker import Worker

logger = logging.getLogger(__name__)


class HostedTrunk(SessionHost):
    """Runs a trunk for many clients, one step at a time, each session with a KV cache of its own.

    Args:
        trunk: the model part; put into evaluation mode here.
        name: what clients see as the name of the service.
        worker: runs the model's calls; None for a thread of its own.
    """

    def __init__(self, trunk: Trunk, *, name: str, worker: Worker | None = None) -> None:
        self._trunk = trunk
        trunk.train(False)
        self._name = name
        self._caches: dict[str, PartCache] = {}
        self._form: CacheForm | None = None
        self._worker: Worker = worker or WorkerThread(f"trunk-{name}")

    def get_info(self) -> ServiceInfo:
        """Describe the trunk: cut points, fingerprint, what hidden states it takes."""
        info = trunk_info(self._trunk)
        a, b = info.split_points
        return ServiceInfo(
            name=self._name,
            # With the cut points: a client that comes back to this address must not meet other layers.
            fingerprint=info.fingerprint and ":".join((info.fingerprint, f"{a}-{b}")),
            split_points=(a, b),
            num_layers=info.num_layers,
            hidden_size=info.hidden_size,
            dtype=info.dtype,
            max_positions=info.max_positions,
            model_type=info.model_type,
            stateful=True,
            version=splitlearn_core.__version__,
        )

    async def teardown(self) -> None:
        """End the model's thread; the host may be set up again."""
        self._caches.clear()
        await self._worker.shutdown()

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Run the layers once; the cache, if any, comes and goes with the call."""
        return await self._worker.run(partial(self._compute, call))

    async def open_session(self, session_id: str, client: str = "") -> None:
        """Make an empty cache for a session."""
        self._caches[session_id] = self._trunk.new_cache()

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Do one step of a session on the model's thread.

        Raises:
            SessionNotFoundError: the session is not open, or an earlier step of it failed half-way.
        """
        cache = self._cache_of(session_id)
        try:
            return await self._worker.run(partial(self._step, cache, action))
        except Exception:
            # Some layers may have appended to their cache and others not: the session cannot go on.
            self._caches.pop(session_id, None)
            raise

    async def export_session(self, session_id: str) -> KVEntries:
        """Give out a session's cache; raises as `SessionHost.export_session` does."""
        return await self._worker.run(partial(self._export, self._cache_of(session_id)))

    async def import_session(self, session_id: str, cache: KVEntries) -> None:
        """Fill a new session with a cache from another server of the same trunk."""
        self._cache_of(session_id)
        imported = await self._worker.run(partial(self._import, cache))
        if session_id in self._caches:  # not closed meanwhile
            self._caches[session_id] = imported

    def _cache_of(self, session_id: str) -> PartCache:
        if session_id not in self._caches:
            raise SessionNotFoundError("this session is not open, or a step of it failed; open a new one")
        return self._caches[session_id]

    async def close_session(self, session_id: str) -> None:
        """Free a session's cache."""
        self._caches.pop(session_id, None)

    @torch.inference_mode()
    def _step(self, cache: PartCache, action: Action) -> torch.Tensor | None:
        match action:
            case Forward():
                return self._forward(action.hidden, action.attention_mask, action.position_ids, cache)
            case Reorder():
                cache.reorder_cache(torch.tensor(action.indices, device=self._trunk.device))
            case Crop():
                cache.crop(-action.num_tokens)
            case StartRecording():
                cache.activate_past_recording()
        return None

    @torch.inference_mode()
    def _compute(self, call: ComputeCall) -> ComputeResult:
        cache = None
        if call.use_cache or call.past_key_values is not None:
            cache = self._import(call.past_key_values)
        output = self._forward(call.tensor, call.attention_mask, call.position_ids, cache)
        return ComputeResult(output, self._export(cache) if cache is not None and call.use_cache else None)

    def _forward(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: PartCache | None,
    ) -> torch.Tensor:
        device = self._trunk.device
        output = self._trunk(
            hidden_BTH.to(device),
            attention_mask if attention_mask is None else attention_mask.to(device),
            position_ids if position_ids is None else position_ids.to(device),
            past_key_values=cache,
        )
        assert isinstance(output, torch.Tensor)
        return output

    def _import(self, entries: KVEntries | None) -> PartCache:
        cache: PartCache = self._trunk.new_cache()
        if entries is not None:
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

    @torch.inference_mode()
    def _cache_form(self) -> CacheForm:
        if self._form is None:
            info, cache = trunk_info(self._trunk), self._trunk.new_cache()
            self._forward(torch.zeros(1, 1, info.hidden_size, dtype=info.dtype), None, None, cache)
            self._form = CacheForm(self._export(cache))
        return self._form

    def _export(self, cache: PartCache) -> KVEntries:
        try:
            states = export_cache(cache)
        except UnsupportedModelError as error:
            raise UnsupportedOperationError(str(error)) from error
        return KVEntries(tuple(KVEntry(s.layer, s.kind, dict(s.tensors)) for s in states), cache.position)
