"""Trunks with clients' adapters in them, and the sessions that compute with these: one step after the other."""

import time
from collections.abc import Callable
from typing import assert_never

import torch

from splitlearn_comm import (
    Action,
    AdapterNotFoundError,
    ComputeCall,
    ComputeResult,
    Crop,
    Forward,
    InvalidRequestError,
    Reorder,
    SessionNotFoundError,
    StartRecording,
)
from splitlearn_comm.host import refuse_adapter
from splitlearn_comm.worker import WorkerThread
from splitlearn_core import LocalTrunk, Trunk
from splitlearn_core.parts.port import TrunkSession
from splitlearn_manager.runtime.adapter_shelf import AdapterLimits, AdapterShelf
from splitlearn_manager.runtime.cache_transfer import CacheTransfer


class AdaptedTrunk:
    """A trunk with an adapter in it, in evaluation mode; on the thread that it trains on.

    Args:
        trunk: the part; whoever trains it may go on.
    """

    def __init__(self, trunk: Trunk) -> None:
        self._port = LocalTrunk(trunk, is_differentiable=False)
        self._transfer = CacheTransfer(trunk)

    def compute(self, call: ComputeCall) -> ComputeResult:
        """Do a stateless call."""
        if self._port.trunk.training:
            self._port.trunk.train(False)
        return self._transfer.compute(call)

    def open_session(self) -> TrunkSession:
        """Return a session with an empty cache."""
        return self._port.open_session()


class AdaptedSession:
    """A session that computes with an adapter.

    Args:
        trunk: what it computes with.
        key: client and name, under which that was found.
    """

    def __init__(self, trunk: AdaptedTrunk, key: tuple[str, str]) -> None:
        self.trunk = trunk
        self.key = key
        self._session = trunk.open_session()

    def do(self, action: Action) -> torch.Tensor | None:
        """Do one step; a failed one may leave the cache half changed."""
        match action:
            case Forward(hidden_BTH, attention_mask, position_ids):
                return self._session.step(hidden_BTH, attention_mask, position_ids)
            case Reorder(indices):
                self._session.reorder(torch.tensor(tuple(indices)))
            case Crop(num_tokens):
                self._session.crop(num_tokens)
            case StartRecording():
                self._session.start_recording()
            case _:
                assert_never(action)
        return None


class AdaptedTrunks:
    """The adapters of all clients, by their names, and who computes with them.

    Steps run one by one on the thread of the trainings: none shares a forward with a session of another adapter, or of
    none, and none meets an update half-way.

    Args:
        worker: the thread.
        limits: what may be published.
        clock: seconds, from any moment on.
    """

    def __init__(
        self, worker: WorkerThread, limits: AdapterLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._training: dict[tuple[str, str], AdaptedTrunk] = {}
        self._published: AdapterShelf[AdaptedTrunk] = AdapterShelf(limits)
        self._sessions: dict[str, AdaptedSession | None] = {}

    def __repr__(self) -> str:
        return f"<{len(self._training)} training, published {self._published!r}, {len(self._sessions)} sessions>"

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def check_free(self, client: str, name: str) -> None:
        """Raise `InvalidRequestError` if the client has an adapter of that name already."""
        if self._find(client, name) is not None:
            raise InvalidRequestError(f"this client has an adapter {name!r} already: expected a name of its own")

    def put(self, client: str, name: str, trunk: Trunk) -> None:
        """Let a client compute with a trunk that it trains, under a name."""
        self._training[client, name] = AdaptedTrunk(trunk)

    def take_away(self, client: str, name: str) -> None:
        """Forget a trunk that trained, if it is there; the sessions that compute with it are over."""
        self._end(self._training.pop((client, name), None))

    def check_room(self, client: str, name: str, num_bytes: int) -> None:
        """Check that an adapter of so many bytes can be published.

        Raises:
            InvalidRequestError: the client trains under that name.
            ResourceExhaustedError: there is no room for it.
        """
        self.expire()
        if (client, name) in self._training:
            raise InvalidRequestError(f"this client trains under the name {name!r}: publish under another")
        self._published.check_room(client, name, num_bytes)

    def publish(self, client: str, name: str, trunk: Trunk, num_bytes: int) -> None:
        """Keep a trunk that changes no more, in place of what was published under the name; raises as `check_room`."""
        self.check_room(client, name, num_bytes)
        self._end(self._published.remove(client, name))
        self._published.put(client, name, AdaptedTrunk(trunk), num_bytes, self._clock())

    def free(self, client: str, name: str) -> None:
        """Forget what was published under a name; raises `AdapterNotFoundError` where nothing was."""
        self.expire()
        trunk = self._published.remove(client, name)
        if trunk is None:
            refuse_adapter(name)
        self._end(trunk)

    def expire(self) -> None:
        """Forget what was published and not used for too long; the sessions that computed with it are over."""
        for trunk in self._published.expire(self._clock()):
            self._end(trunk)

    def clear(self) -> None:
        """Forget all."""
        self._training.clear()
        self._published.clear()
        self._sessions.clear()

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Do a stateless call with the adapter that it names; raises `AdapterNotFoundError` where there is none."""
        trunk = self._of(call.client, call.adapter)
        return await self._worker.run(lambda: trunk.compute(call))

    async def open(self, session_id: str, client: str, name: str) -> None:
        """Open a session that computes with an adapter; raises `AdapterNotFoundError` where there is none."""
        trunk = self._of(client, name)
        session = await self._worker.run(lambda: AdaptedSession(trunk, (client, name)))
        if self._of(client, name) is not trunk:
            raise AdapterNotFoundError(f"adapter {name!r} was made anew while the session was opened; open another")
        self._sessions[session_id] = session

    async def step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Do one step of an open session.

        Raises:
            SessionNotFoundError: what it computed with is there no more.
        """
        session = self._sessions[session_id]
        if session is None:
            raise SessionNotFoundError(
                "the adapter that this session computed with is there no more: its training has ended, or it was "
                "freed or published anew; open another session and send the whole sequence again"
            )
        self._published.of(*session.key, self._clock())  # it is in use
        return await self._worker.run(lambda: session.do(action))

    def close(self, session_id: str) -> None:
        """Free a session, if it is one of these."""
        self._sessions.pop(session_id, None)

    def _find(self, client: str, name: str) -> AdaptedTrunk | None:
        return self._training.get((client, name)) or self._published.of(client, name, self._clock())

    def _end(self, trunk: AdaptedTrunk | None) -> None:
        for session_id, session in self._sessions.items():
            if session is not None and session.trunk is trunk:
                self._sessions[session_id] = None

    def _of(self, client: str, name: str) -> AdaptedTrunk:
        self.expire()
        trunk = self._find(client, name)
        if trunk is None:
            refuse_adapter(name)
            raise AssertionError("only those that name one come here")
        return trunk
