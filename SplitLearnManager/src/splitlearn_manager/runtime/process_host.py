"""A model in another process, as a session host of this one."""

import contextlib
import json
import math
import sys
import time
from dataclasses import dataclass

import torch

from splitlearn_comm import Action, CacheUse, ComputeCall, ComputeResult, Forward, KVEntries, ServiceInfo
from splitlearn_comm.errors import ServerUnavailableError, SessionNotFoundError
from splitlearn_comm.framing.calls import decode_result, encode_call
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.framing.steps import Answer, encode_import, encode_step, with_timeout
from splitlearn_comm.messages import SessionState
from splitlearn_comm.training import BackwardPass, ReadTraining, Trained, TrainingAction
from splitlearn_comm.worker import DUE_S, note_turn
from splitlearn_manager.errors import ModelFaultError
from splitlearn_manager.runtime.figures import EngineReading
from splitlearn_manager.runtime.measured_host import MeasuredHost
from splitlearn_manager.runtime.model_process import ModelProcess
from splitlearn_manager.runtime.process_frames import Frame, Kind, named
from splitlearn_manager.runtime.process_tensors import packed, unpacked

_NO_CHUNKS = 0
# What the two processes hand each other comes raw, and is in memory already.
_ANY_SIZE = sys.maxsize


@dataclass(frozen=True, slots=True)
class _Session:
    number: int
    inbox: Inbox


class ProcessHost(MeasuredHost):
    """Hands sessions and calls on to a model's process; a round trip costs about what a thread's hand-off does.

    When the process ends, all that is asked of it is a `ServerUnavailableError` that says how it ended.

    Args:
        process: loaded already, or by `setup`; ended by `teardown`.
    """

    def __init__(self, process: ModelProcess) -> None:
        self._process = process
        self._sessions: dict[str, _Session] = {}
        self._num_opened = 0

    def get_info(self) -> ServiceInfo:
        """What the process said it serves."""
        return self._process.info

    async def setup(self) -> None:
        """Load the model, unless it is.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        if self._process.pid is None:
            await self._process.load()

    async def teardown(self) -> None:
        """End the process."""
        self._sessions.clear()
        await self._process.end()

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Have the process do a stateless call."""
        payload = encode_call(call)
        if call.adapter:
            frame = await self._process.call(Kind.ADAPTED, named(call.client, payload))
        else:
            frame = await self._process.call(Kind.COMPUTE, payload)
        if frame.kind is not Kind.DONE:
            raise _error_of(frame, Inbox(_NO_CHUNKS))
        return decode_result(frame.payload, max_bytes=_ANY_SIZE)

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        """Have the process make room for a session."""
        self._num_opened += 1
        session = _Session(self._num_opened, Inbox(_NO_CHUNKS, _ANY_SIZE))
        self._sessions[session_id] = session
        try:
            await self._ask(session, Kind.OPEN, json.dumps([client, adapter]).encode())
        except BaseException:
            # Nobody will close what nobody knows is open.
            self._sessions.pop(session_id, None)
            self._process.tell(Kind.CLOSE, session.number)
            raise

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Have the process do a step; where `splitlearn_comm.worker.DUE_S` is set, not behind that time.

        Raises:
            DeadlineExceededError: its turn came too late; nothing was done.
            SessionNotFoundError: the session is not open, or an earlier step of it failed half-way.
            ServerUnavailableError: the process has ended.
        """
        session = self._session_of(session_id)
        payload = _packed_forward(action)
        if payload is None:
            frame = await self._process.call(Kind.STEP, _encoded(action), session.number)
        else:
            frame = await self._process.call(Kind.FORWARD, payload, session.number)
        note_turn(frame.began_s)
        if frame.kind is Kind.OUTPUT:
            return unpacked(frame.payload)
        return _answer_of(frame, session).tensor

    async def train(self, session_id: str, action: TrainingAction) -> torch.Tensor | Trained | None:
        """Have the process do a step of training."""
        session = self._session_of(session_id)
        frame = await self._process.call(Kind.STEP, _encoded(action), session.number)
        note_turn(frame.began_s)
        answer = _answer_of(frame, session)
        if isinstance(action, BackwardPass | ReadTraining):
            return Trained(answer.tensor, answer.gradient_norms, answer.training_state)
        return answer.tensor

    async def export_session(self, session_id: str) -> KVEntries:
        """Have the process give out a session's cache."""
        answer = await self._ask(self._session_of(session_id), Kind.EXPORT)
        assert answer.state is not None
        return answer.state.cache

    async def import_session(self, session_id: str, cache: KVEntries) -> None:
        """Have the process fill a new session with a cache."""
        payload = encode_import(0, SessionState(cache, None))
        await self._ask(self._session_of(session_id), Kind.IMPORT, payload)

    async def close_session(self, session_id: str) -> None:
        """Have the process free a session; one whose process has ended is freed already."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            with contextlib.suppress(ServerUnavailableError):
                await self._ask(session, Kind.CLOSE)

    async def read(self) -> EngineReading | None:
        """Have the process say what it did; it answers between two forwards."""
        frame = await self._process.call(Kind.READ)
        return EngineReading.from_json(frame.payload.decode()) if frame.payload else None

    async def cache_use(self) -> CacheUse:
        """Have the process say what the caches take."""
        reading = await self.read()
        if reading is None:
            return CacheUse()
        return CacheUse(num_bytes=reading.kv_bytes, limit_bytes=reading.kv_limit_bytes or 0)

    def _session_of(self, session_id: str) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFoundError("this session is not open, or a step of it failed; open a new one")
        return session

    async def _ask(self, session: _Session, kind: Kind, payload: bytes = b"") -> Answer:
        return _answer_of(await self._process.call(kind, payload, session.number), session)


def _packed_forward(action: Action) -> bytes | None:
    """Return the short form of a step, None where it has none."""
    if isinstance(action, Forward) and action.attention_mask is None and action.position_ids is None:
        return packed(action.hidden, DUE_S.get())
    return None


def _encoded(action: Action | TrainingAction) -> bytes:
    """Return the long form of a step."""
    message, due_s = encode_step(0, 0, action), DUE_S.get()
    return whole(message if due_s == math.inf else with_timeout(message, due_s - time.monotonic()))


def _answer_of(frame: Frame, session: _Session) -> Answer:
    """Return what a process answered; raises what it answered instead of a result."""
    if frame.kind is not Kind.DONE:
        raise _error_of(frame, session.inbox)
    answer = session.inbox.answer(frame.payload)
    assert answer is not None
    return answer


def _error_of(frame: Frame, inbox: Inbox) -> Exception:
    """Return what a process answered instead of a result."""
    if frame.kind is Kind.FAILED:
        return ModelFaultError(frame.payload.decode())
    answer = inbox.answer(frame.payload)
    assert answer is not None
    assert answer.error is not None
    return answer.error
