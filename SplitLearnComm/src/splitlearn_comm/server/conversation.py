"""What is said over one stream: a message is read, the book asked what to do, the host does it, an answer made."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import replace

import grpc
import torch

from splitlearn_comm.contained import awaited
from splitlearn_comm.errors import CommError, InvalidRequestError, MessageTooLargeError, ServerUnavailableError
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.agreement import check_codecs
from splitlearn_comm.framing.assembly import PLAIN, Packing
from splitlearn_comm.framing.chunks import CHUNK_BYTES, Outgoing
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import (
    RAW_ROLES,
    Action,
    Crop,
    Forward,
    KVEntries,
    Reorder,
    RoleCodecs,
    SessionState,
    Timings,
)
from splitlearn_comm.observer import ObservedCall, StepSummary, action_name
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.due import in_time
from splitlearn_comm.server.faults import as_comm_error, logger
from splitlearn_comm.server.open_sessions import OpenSessions
from splitlearn_comm.server.security.accounts import Meter
from splitlearn_comm.server.statistics import ServerStatistics
from splitlearn_comm.server.watching import ServedCall
from splitlearn_comm.session import Advance, Effect, Ledger, Mark, Permute, Replay, Trim
from splitlearn_comm.training import StartTraining, Trained, TrainingAction
from splitlearn_comm.worker import TURN, Turn


class Conversation:
    """Answers the messages of one stream.

    Args:
        sessions: All sessions of the server.
        meter: What the client has sent over this stream.
        config: Limits.
        statistics: Where to count.
        call: The call, where somebody watches.
    """

    def __init__(
        self,
        sessions: OpenSessions,
        meter: Meter,
        config: GRPCServerConfig,
        statistics: ServerStatistics,
        call: ServedCall | None,
    ) -> None:
        self.is_draining = False
        """Whether the server opens no more sessions."""
        self.can_move = False
        """Whether the client would take its session elsewhere."""
        self.is_given_up = False
        """Whether the server, which drains, has waited for the client for long enough."""
        self.pause_s = 0.0
        """For how long no message is to be read: the client has sent too many."""
        self.codecs: RoleCodecs = RAW_ROLES
        """What was agreed on when the session opened."""
        self._sessions = sessions
        self._meter = meter
        self._max_message_bytes = config.max_message_bytes
        self._statistics = statistics
        self._call = call
        self._inbox = Inbox(config.max_message_bytes)
        self._packing = PLAIN
        self._tells_timings = False
        self._session_id = ""
        self._attachment = 0
        self._has_spoken = False
        self._arrived_s = 0.0
        self._waited_s = self._compute_s = 0.0
        self._due_s: float | None = None
        self._pending_bytes = 0

    def __repr__(self) -> str:
        return f"session {self._session_id or '(none)'}"

    @property
    def session_id(self) -> str:
        """The session that is open on the stream; empty before, and after it was closed."""
        return self._session_id

    @property
    def is_training(self) -> bool:
        """Whether the session trains weights: no other server can go on with it, but its client can save it."""
        return self._sessions.is_training(self._session_id)

    @property
    def may_go_on(self) -> bool:
        """Whether steps are still done while the server drains: the client does not lose by it what it would."""
        return not self.is_given_up and (self.can_move or self.is_training)

    def idle_s(self) -> float:
        """Seconds since the last message came; of a session that trains, since anybody computed with what it trains."""
        arrived_s = time.perf_counter() - self._arrived_s
        used_s = self._sessions.idle_training_s(self._session_id)
        return arrived_s if used_s is None else min(arrived_s, used_s)

    def receive(self, num_bytes: int) -> None:
        """Count what came. Raises `ResourceExhaustedError` where the stream has to end."""
        self._meter.receive(num_bytes)

    def end(self) -> None:
        """Note that the stream has ended; its session waits for another, for a while."""
        self._meter.release()
        self._sessions.detach(self._session_id, self._attachment)

    async def answer(self, data: bytes, now: float) -> Outgoing | None:
        """The answer to a message; None to a chunk, which is kept for the message it belongs to."""
        self._arrived_s = time.perf_counter()
        self._statistics.bytes_received += len(data)
        step_id = position = 0
        request, refusal = None, None
        try:
            request = self._inbox.request(data)
            if request is None:
                self._pending_bytes += len(data)
                return None
            step_id, position = request.step_id, request.position
            self._due_s = time.monotonic() + request.timeout_ms / 1000 if request.timeout_ms else None
            reply = await self._admitted(request, now)
        except Exception as error:
            self._statistics.refusals += 1
            self.pause_s = self._meter.settle(now)
            refusal = as_comm_error(error, f"step {step_id} of {self!r}", session=self._session_id, step=step_id)
            reply = steps.encode_refusal(step_id, position, refusal)
        self._statistics.bytes_sent += len(reply)
        if self._call is not None:
            _tell(self._call.observed, self._summary(request, refusal, len(data), len(reply)))
        return reply

    async def _admitted(self, request: steps.Request, now: float) -> Outgoing:
        is_first, self._has_spoken = not self._has_spoken, True
        if not (is_first and _takes_up(request)):
            self._meter.admit(now)
            return await self._do(request)
        # Its client left another stream behind a refusal: it would spend on this what it has waited for. One that is
        # refused is counted as every other.
        reply = await self._do(request)
        self._meter.release()
        return reply

    async def _do(self, request: steps.Request) -> Outgoing:
        match request.action:
            case steps.Open():
                return await self._open(request.action)
            case steps.Close():
                return await self._close(request.step_id)
            case steps.Export():
                return await self._export()
            case steps.Import(state):
                return await self._import(request, state)
            case action:
                reply = await self._step(request, action)
        return steps.with_draining(reply) if self.is_draining and self.may_go_on else reply

    async def _open(self, opening: steps.Open) -> Outgoing:
        session_id = opening.session_id
        if self._session_id not in ("", session_id) and self._sessions.has(self._session_id):
            raise InvalidRequestError(
                f"this stream has session {self._session_id}; open another on a stream of its own"
            )
        if self.is_draining and not opening.resume:
            raise ServerUnavailableError("this server is stopping and opens no more sessions; ask another")
        self._agree(opening)
        # The answer to an open may be lost too: an open of a session that has done nothing yet is the same open again.
        if opening.resume or self._sessions.is_new(session_id):
            self._attachment = self._sessions.attach(session_id, self._meter.account)
        else:
            self._attachment = await self._sessions.open(
                session_id, self._meter.account, opening.expected_fingerprint, opening.adapter
            )
        self._session_id = session_id
        ledger = await self._sessions.settled(session_id, opening.expected_fingerprint)
        served = self._sessions.served(session_id)
        opened = steps.Opened(
            self._max_message_bytes, CHUNK_BYTES, served.is_stateful, served.fingerprint, served.load.known()
        )
        return steps.encode_opened(ledger.step_id, ledger.position, opened)

    def _agree(self, opening: steps.Open) -> None:
        for role, codecs in opening.codecs.by_role():
            check_codecs(role, codecs)
        self.codecs = opening.codecs
        self._inbox.agree(opening.codecs)
        chunk_bytes = opening.chunk_bytes and min(opening.chunk_bytes, CHUNK_BYTES)
        self._packing = Packing(opening.codecs.hidden.to_client, chunk_bytes)
        self._tells_timings = opening.timings
        self.can_move = opening.can_move

    async def _close(self, step_id: int) -> Outgoing:
        session_id, self._session_id = self._session_id, ""
        if self._sessions.has(session_id):
            self._sessions.use(session_id, self._attachment)
            if self._call is not None:
                self._call.is_done = True
            await self._sessions.end(session_id, "closed")
        return steps.encode_done(step_id, 0)

    async def _export(self) -> Outgoing:
        ledger = self._ledger()
        served = self._sessions.served(ledger.session_id)
        cache = await awaited(served.host.export_session, ledger.session_id) if served.is_stateful else KVEntries((), 0)
        state = SessionState(replace(cache, position=ledger.position), ledger.batch)
        reply = steps.encode_state(ledger.step_id, ledger.position, state, self.codecs.kv.to_client)
        # What a codec has made small is as large again on the other side.
        if (num_bytes := max(len(reply), cache.num_bytes)) > self._max_message_bytes:
            raise MessageTooLargeError(f"the session has {num_bytes} bytes; {self._max_message_bytes} are sent")
        return reply

    async def _import(self, request: steps.Request, state: SessionState) -> Outgoing:
        ledger = self._ledger()
        served = self._sessions.served(ledger.session_id)
        served.validator.check_state(state, request.position)
        ledger.adopt(request.step_id, state.cache.position, state.batch)
        try:
            if served.is_stateful:
                await awaited(served.host.import_session, ledger.session_id, state.cache)
        except BaseException:
            await self._fail(ledger, "its state could not be imported")
            raise
        finally:
            ledger.abandon()
            self._sessions.wake(ledger.session_id)
        if not self._sessions.has(ledger.session_id):
            # Closed meanwhile: what was imported has no owner.
            await awaited(served.host.close_session, ledger.session_id)
        return steps.encode_done(ledger.step_id, ledger.position)

    def _ledger(self) -> Ledger:
        if not self._session_id:
            raise InvalidRequestError("no session is open on this stream; the first message has to open one")
        return self._sessions.use(self._session_id, self._attachment)

    async def _step(self, request: steps.Request, action: Action | TrainingAction) -> Outgoing:
        ledger = self._ledger()
        verdict = ledger.admit(request.step_id, request.position, effect_of(action))
        if isinstance(verdict, Replay):
            self._statistics.replays += 1
            assert isinstance(verdict.reply, Outgoing)
            return verdict.reply
        try:
            reply = await self._done(ledger, request.step_id, verdict.position, action)
            ledger.commit(reply)
            if isinstance(action, StartTraining):
                trains = action.full or action.adapter is not None
                self._sessions.begin_training(ledger.session_id, action.name, has_weights=trains)
            self._meter.account.keep_reply(ledger.session_id, len(reply))
        finally:
            ledger.abandon()
            self._sessions.wake(ledger.session_id)
        self._statistics.steps += 1
        return reply

    async def _done(self, ledger: Ledger, step_id: int, position: int, action: Action | TrainingAction) -> Outgoing:
        """Have the host do a step; returns the answer to send."""
        result = await self._run(ledger, action)
        # The host has done the step: from here on its number must not become free again.
        try:
            reply = self._encoded(step_id, position, result)
        except Exception:
            await self._fail(ledger, "the answer to a step of it could not be put into a message")
            raise
        if len(reply) > self._max_message_bytes:
            await self._fail(ledger, f"the answer to step {step_id} was too large to send")
            raise MessageTooLargeError(
                f"the answer has {len(reply)} bytes, and the server sends at most {self._max_message_bytes}; "
                f"the session is closed: open another with a smaller batch or shorter steps, "
                f"or raise max_message_bytes on both sides"
            )
        return reply

    async def _run(self, ledger: Ledger, action: Action | TrainingAction) -> torch.Tensor | Trained | None:
        served = self._sessions.served(ledger.session_id)
        if isinstance(action, Forward):
            served.validator.check_forward(action, ledger.position)
        elif isinstance(action, TrainingAction):
            served.validator.check_training(action)
        turn = Turn()
        mark, asked_s = TURN.set(turn), time.perf_counter()
        served.load.steps += 1
        try:
            if isinstance(action, TrainingAction):
                done: Awaitable[torch.Tensor | Trained | None] = awaited(served.host.train, ledger.session_id, action)
            else:
                done = awaited(served.host.run_step, ledger.session_id, action)
            return await (done if self._due_s is None else in_time(done, self._due_s))
        except CommError as error:
            if served.is_stateful and isinstance(error, ServerUnavailableError):
                await self._fail(ledger, "what served it is gone")
            raise
        except Exception:
            if served.is_stateful:
                # Some of its state may have changed and some not; its room is free for others.
                await self._fail(ledger, "a step of it failed inside the service")
            raise
        finally:
            TURN.reset(mark)
            served.load.steps -= 1
            began_s = max(asked_s, turn.began_s)
            self._waited_s, self._compute_s = began_s - asked_s, time.perf_counter() - began_s

    def _encoded(self, step_id: int, position: int, result: torch.Tensor | Trained | None) -> Outgoing:
        began_s = time.perf_counter()
        if isinstance(result, Trained):
            packing = replace(self._packing, codec=self.codecs.gradient.to_client)
            reply = steps.encode_trained(step_id, position, result, packing)
        else:
            reply = steps.encode_done(step_id, position, result, self._packing)
        if not self._tells_timings:
            return reply
        serialise_s, queue_s = time.perf_counter() - began_s, began_s - self._arrived_s - self._compute_s
        return steps.with_timings(reply, Timings(queue_s=queue_s, compute_s=self._compute_s, serialise_s=serialise_s))

    async def _fail(self, ledger: Ledger, reason: str) -> None:
        await self._sessions.end(ledger.session_id, "failed", reason)

    def _summary(
        self, request: steps.Request | None, refusal: CommError | None, bytes_received: int, bytes_sent: int
    ) -> StepSummary:
        """What to tell of the message that was answered."""
        waited_s, compute_s, self._waited_s, self._compute_s = self._waited_s, self._compute_s, 0.0, 0.0
        pending_bytes, self._pending_bytes = self._pending_bytes, 0
        return StepSummary(
            action=action_name(request and request.action),
            code=refusal.code if refusal else grpc.StatusCode.OK,
            step_id=request.step_id if request else 0,
            seconds=time.perf_counter() - self._arrived_s,
            compute_s=compute_s,
            bytes_received=pending_bytes + bytes_received,
            bytes_sent=bytes_sent,
            queue_s=waited_s,
        )


def _tell(observed: ObservedCall, summary: StepSummary) -> None:
    try:
        observed.on_step(summary)
    except Exception:
        logger.exception("an observer failed")


def _takes_up(request: steps.Request) -> bool:
    """Whether a message goes on with a session on a new stream."""
    return isinstance(request.action, steps.Open) and request.action.resume


def effect_of(action: Action | TrainingAction) -> Effect:
    """What a step does to position and batch."""
    match action:
        case Forward(hidden):
            return Advance(hidden.shape[0], hidden.shape[1]) if hidden.dim() > 1 else Advance(0, 0)
        case Reorder(indices):
            return Permute(tuple(indices))
        case Crop(num_tokens):
            return Trim(num_tokens)
        case _:
            return Mark()
