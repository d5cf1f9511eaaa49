"""A trunk as a session host: many sessions, one engine.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import assert_never

import torch

import splitlearn_core
from splitlearn_comm import (
    Action,
    CacheUse,
    ComputeCall,
    ComputeResult,
    Crop,
    Forward,
    KVEntries,
    Reorder,
    ServiceInfo,
    SessionNotFoundError,
    StartRecording,
    UnsupportedOperationError,
)
from splitlearn_comm.training import Trained, TrainingAction
from splitlearn_core import Trunk, UnsupportedModelError, engine
from splitlearn_core.engine import EngineLimits, TrunkEngine
from splitlearn_core.engine.session import tensors_in
from splitlearn_core.parts.port import trunk_info
from splitlearn_manager.runtime.cache_book import CacheBook, CacheLimits
from splitlearn_manager.runtime.cache_transfer import CacheTransfer, entries_of, one_token
from splitlearn_manager.runtime.engine_driver import EngineDriver
from splitlearn_manager.runtime.engine_thread import EngineThread
from splitlearn_manager.runtime.figures import EngineFigures, EngineReading
from splitlearn_manager.runtime.measured_host import MeasuredHost
from splitlearn_manager.runtime.training_desk import TrainingDesk, TrainingLimits

Drives = Callable[[TrunkEngine, str], EngineDriver]
"""Makes who takes an engine's turns, of the engine and a name for it."""


class HostedTrunk(MeasuredHost):
    """Runs a trunk for many clients: steps of several sessions share a forward, where that is exact.

    Args:
        trunk: the model part; put into evaluation mode here.
        name: what clients see as the name of the service.
        engine_limits: how much one forward may hold.
        cache_limits: what the caches of all sessions may hold.
        drives: who takes the engine's turns; a thread of its own by default.
        training_limits: how many clients may train, and what.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        name: str,
        engine_limits: EngineLimits | None = None,
        cache_limits: CacheLimits = CacheLimits(),  # noqa: B008 - frozen
        drives: Drives = EngineThread,
        training_limits: TrainingLimits = TrainingLimits(),  # noqa: B008 - frozen
    ) -> None:
        self._trunk = trunk
        self._name = name
        self._transfer = CacheTransfer(trunk)
        self._figures = EngineFigures()
        self._driver = drives(TrunkEngine(trunk, engine_limits, on_batch=self._figures.add), f"trunk-{name}")
        self._desk = TrainingDesk(trunk, f"training-{name}", training_limits)
        self._clients: dict[str, str] = {}
        self._cache_limits = cache_limits
        self._book = CacheBook(cache_limits, bytes_per_token(trunk))

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

    async def read(self) -> EngineReading:
        """Return what was done up to now, and what is held."""
        return self._figures.reading(
            num_sessions=len(self._book),
            cached_tokens=self._book.num_tokens,
            kv_bytes=self._book.num_bytes,
            kv_limit_bytes=self._cache_limits.max_bytes,
            trainings=self._desk.use(),
        )

    async def cache_use(self) -> CacheUse:
        """Return what the caches take, and may take."""
        return self._book.use()

    async def teardown(self) -> None:
        """End the model's thread; the host may be set up again."""
        for session_id in self._book.close_all():
            self._driver.close(session_id)
        self._clients.clear()
        await self._desk.shutdown()
        await self._driver.shutdown()

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Run the layers once; the cache, if any, comes and goes with the call."""
        if call.adapter:
            return await self._desk.adapted.compute(call)
        return await self._driver.run(lambda _: self._transfer.compute(call))

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        """Make an empty cache for a session; one that is open begins anew."""
        if session_id in self._book:
            await self.close_session(session_id)
        self._desk.adapted.expire()
        if adapter:
            await self._desk.adapted.open(session_id, client, adapter)
        else:
            self._driver.open(session_id, client)
        self._book.open(session_id)
        self._clients[session_id] = client

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Put one step of a session in line, and wait for its result.

        Raises:
            SessionNotFoundError: the session is not open, or an earlier step of it failed half-way.
            ResourceExhaustedError: the caches have no room for it.
        """
        self._check_open(session_id)
        before = self._book.admit(session_id, action)
        try:
            if session_id in self._desk.adapted:
                return await self._desk.adapted.step(session_id, action)
            return await self._driver.step(session_id, engine_action(action))
        except asyncio.CancelledError:
            # Taken out of the line before its turn, or nobody is left to ask for anything more.
            self._book.put_back(session_id, before)
            raise
        except Exception:
            # Some layers may have appended to their cache and others not: the session cannot go on.
            self._book.close(session_id)
            raise

    async def train(self, session_id: str, action: TrainingAction) -> torch.Tensor | Trained | None:
        """Do one step of a session that trains; raises as `TrainingDesk.do`, or `SessionNotFoundError`."""
        self._check_open(session_id)
        return await self._desk.do(session_id, action, self._clients[session_id])

    async def export_session(self, session_id: str) -> KVEntries:
        """Give out a session's cache; raises as `SessionHost.export_session` does."""
        self._check_open(session_id)
        if session_id in self._desk:
            raise UnsupportedOperationError("a training stays where it is: save a checkpoint and go on from that")
        if session_id in self._desk.adapted:
            raise UnsupportedOperationError("a session with an adapter stays where that is: open another elsewhere")
        try:
            return entries_of(*await self._driver.run(lambda engine: engine.export(session_id)))
        except UnsupportedModelError as error:
            raise UnsupportedOperationError(str(error)) from error

    async def import_session(self, session_id: str, cache: KVEntries) -> None:
        """Fill a new session with a cache from another server of the same trunk."""
        self._check_open(session_id)
        if session_id in self._desk.adapted:
            raise UnsupportedOperationError("a session with an adapter takes no cache: send it the whole sequence")
        rows = next((t.shape[0] for entry in cache.entries for t in entry.tensors.values() if t.dim()), 0)
        self._book.resize(session_id, rows, cache.position)
        await self._driver.run(partial(self._import, session_id, cache))

    async def close_session(self, session_id: str) -> None:
        """Free a session's cache."""
        self._book.close(session_id)
        self._clients.pop(session_id, None)
        self._driver.close(session_id)
        self._desk.adapted.close(session_id)
        await self._desk.close(session_id)

    def _check_open(self, session_id: str) -> None:
        if session_id not in self._book:
            raise SessionNotFoundError("this session is not open, or a step of it failed; open a new one")

    def _import(self, session_id: str, cache: KVEntries, engine: TrunkEngine) -> None:
        imported = self._transfer.to_cache(cache)
        if session_id in engine:  # not closed meanwhile
            engine.replace(session_id, imported)


def engine_action(action: Action) -> engine.Action:
    """Return a step of the wire in the engine's words."""
    match action:
        case Forward(hidden, attention_mask, position_ids):
            return engine.RunTokens(hidden_BTH=hidden, attention_mask=attention_mask, position_ids=position_ids)
        case Reorder(indices):
            return engine.ReorderRows(indices=tuple(indices))
        case Crop(num_tokens):
            return engine.CropTokens(num_tokens=num_tokens)
        case StartRecording():
            return engine.StartRecording()
        case _:
            assert_never(action)


def bytes_per_token(trunk: Trunk) -> int:
    """Return what the caches of a trunk's layers take for one token of one row."""
    cache = one_token(trunk)
    return sum(tensor.nbytes for layer in cache.own_slots() for tensor in tensors_in(vars(layer).values()))
