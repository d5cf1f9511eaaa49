"""Sessions over their streams: reads a message, asks the book what to do, has the host do it, answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio
import torch

from splitlearn_comm.errors import (
    CommError,
    InvalidRequestError,
    MessageTooLargeError,
    ResourceExhaustedError,
    ServerUnavailableError,
)
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.agreement import check_codecs
from splitlearn_comm.framing.assembly import PLAIN, Packing
from splitlearn_comm.framing.chunks import CHUNK_BYTES, Outgoing, messages_of
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
from splitlearn_comm.observer import Observer, StepSummary, action_name
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.faults import abort, as_comm_error, logger, told_without_contents
from splitlearn_comm.server.security.accounts import Meter
from splitlearn_comm.server.security.caller import CALLER
from splitlearn_comm.server.served import Served, Services
from splitlearn_comm.server.statistics import ServerStatistics
from splitlearn_comm.server.watching import SERVED, ServedCall
from splitlearn_comm.session import Advance, Effect, Ledger, Mark, Permute, Replay, SessionTable, Trim

_END = grpc.aio.EOF  # type: ignore[attr-defined]


@dataclass(slots=True)
class _Stream:
    """What a stream is attached to, and how it speaks."""

    inbox: steps.Inbox
    meter: Meter
    session_id: str = ""
    attachment: int = 0
    is_busy: bool = False
    has_read: bool = False
    packing: Packing = PLAIN
    codecs: RoleCodecs = RAW_ROLES
    """What was agreed on when the session opened."""
    tells_timings: bool = False
    can_move: bool = False
    """Whether the client would take its session elsewhere."""
    arrived_s: float = field(default=0.0)
    """When the message that is being answered came."""
    pause_s: float = 0.0
    """For how long no message is read: its client has sent too many."""
    served: ServedCall | None = None
    """Its call, where somebody watches."""
    compute_s: float = 0.0
    """What the host took for the message that is being answered."""
    pending_bytes: int = 0
    """Received since the last answer."""


class SessionService:
    """Serves the Session call.

    A stream is served by a task of its own: gRPC cancels the call's handler when the connection breaks, and a step that
    is running then has to come to its end, be booked and be remembered, for the client that comes back for its answer.
    """

    def __init__(
        self,
        services: Services,
        config: GRPCServerConfig,
        statistics: ServerStatistics,
        observer: Observer | None = None,
    ) -> None:
        self._services = services
        self._config = config
        self._statistics = statistics
        self._observer = observer or Observer()
        self._table = SessionTable(
            max_sessions=config.max_sessions,
            idle_timeout_s=config.idle_session_timeout_s,
            detached_timeout_s=config.detached_session_timeout_s,
        )
        self._clock = asyncio.get_running_loop().time
        self._served: dict[str, Served] = {}
        self._streams: dict[asyncio.Task[None], _Stream] = {}
        self._is_draining = False
        self._opening: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<{len(self._streams)} streams, {self._table!r}>"

    async def serve(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """The handler of one stream."""
        max_bytes = self._config.max_message_bytes
        stream = _Stream(steps.Inbox(max_bytes), Meter(CALLER.get().account, max_bytes), served=SERVED.get())
        task = asyncio.create_task(self._serve_stream(stream, context))
        self._streams[task] = stream
        task.add_done_callback(self._streams.pop)
        await asyncio.shield(task)

    async def expire_for_ever(self) -> None:
        """Close sessions whose time is over, until cancelled."""
        shortest = min(self._config.idle_session_timeout_s, self._config.detached_session_timeout_s)
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            for session_id in self._table.expire(self._clock()):
                self._statistics.sessions_expired += 1
                self._observer.on_session_closed("expired")
                logger.info("session %s expired", session_id)
                await self._close_at_host(session_id)

    def drain(self) -> None:
        """Open no more sessions; end each stream after the step it is running, the idle ones now.

        Streams whose clients can take their sessions elsewhere go on, and are asked to do so.
        """
        self._is_draining = True
        self._end_idle()

    def _end_idle(self) -> None:
        for task, stream in self._streams.items():
            if not stream.is_busy and not stream.can_move:
                task.cancel()

    async def wait_for_moves(self, timeout_s: float) -> None:
        """Wait until the clients that can have taken their sessions elsewhere; after the timeout end them too."""
        if moving := [task for task, stream in self._streams.items() if stream.can_move]:
            await asyncio.wait(moving, timeout=timeout_s)
        for stream in self._streams.values():
            stream.can_move = False
        self._end_idle()

    async def stop(self) -> None:
        """Cut off what drains no more, and close all sessions."""
        for task in self._streams:
            task.cancel()
        if self._streams:
            await asyncio.wait(self._streams)
        for session_id in self._table.close_all():
            self._observer.on_session_closed("stopped")
            await self._close_at_host(session_id)

    async def _serve_stream(self, stream: _Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            await self._converse(stream, context)
        except asyncio.CancelledError:
            if not self._is_draining:
                raise
        except ResourceExhaustedError as error:
            await abort(context, as_comm_error(error, f"the stream of session {stream.session_id or '(none)'}"))
        except Exception:
            # Whatever gRPC raises for a connection that broke: the session waits for its client to come back.
            logger.debug("the stream of session %s broke", stream.session_id, exc_info=True)
        finally:
            stream.meter.release()
            self._table.detach(stream.session_id, stream.attachment, self._clock())
        if self._is_draining:
            with contextlib.suppress(grpc.aio.InternalError):
                # Of a client that has left already, gRPC complains.
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    async def _converse(self, stream: _Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        # The first message of a stream is read while draining too: a client may come back for its session.
        while (stream.can_move or not stream.has_read or not self._is_draining) and (
            data := await context.read()
        ) is not _END:
            stream.is_busy = stream.has_read = True
            stream.meter.receive(len(data))
            reply = await self._answer(stream, data)
            if reply is not None:
                for message in messages_of(reply):
                    await context.write(message)
            stream.is_busy = False
            if stream.pause_s:
                await asyncio.sleep(stream.pause_s)
                stream.pause_s = 0.0

    async def _answer(self, stream: _Stream, data: bytes) -> Outgoing | None:
        stream.arrived_s = time.perf_counter()
        self._statistics.bytes_received += len(data)
        step_id = position = 0
        request, refusal = None, None
        try:
            request = stream.inbox.request(data)
            if request is None:
                stream.pending_bytes += len(data)
                return None
            step_id, position = request.step_id, request.position
            if stream.attachment or not _takes_up(request):
                stream.meter.admit(self._clock())
            else:
                # Its client left another stream behind a refusal: it would spend on this what it has waited for.
                stream.meter.release()
            reply = await self._do(stream, request)
        except Exception as error:
            self._statistics.refusals += 1
            stream.pause_s = stream.meter.settle(self._clock())
            refusal = as_comm_error(error, f"step {step_id} of session {stream.session_id or '(none)'}")
            reply = steps.encode_refusal(step_id, position, refusal)
        self._statistics.bytes_sent += len(reply)
        if stream.served is not None:
            stream.served.observed.on_step(_summary(stream, request, refusal, len(data), len(reply)))
        return reply

    async def _do(self, stream: _Stream, request: steps.Request) -> Outgoing:
        match request.action:
            case steps.Open():
                return await self._open(stream, request.action)
            case steps.Close():
                return await self._close(stream, request.step_id)
            case steps.Export():
                return await self._export(stream)
            case steps.Import(state):
                return await self._import(stream, request, state)
            case action:
                reply = await self._step(stream, request, action)
        return steps.with_draining(reply) if self._is_draining and stream.can_move else reply

    async def _open(self, stream: _Stream, opening: steps.Open) -> Outgoing:
        if stream.session_id not in ("", opening.session_id) and self._table.has(stream.session_id):
            raise InvalidRequestError(
                f"this stream has session {stream.session_id}; open another on a stream of its own"
            )
        if self._is_draining and not opening.resume:
            raise ServerUnavailableError("this server is stopping and opens no more sessions; ask another")
        self._agree(stream, opening)
        if opening.resume or self._is_repeated_open(opening.session_id):
            ledger = await self._resume(stream, opening)
        else:
            ledger = await self._open_new(stream, opening)
        served = self._served[opening.session_id]
        opened = steps.Opened(self._config.max_message_bytes, CHUNK_BYTES, served.is_stateful, served.fingerprint)
        return steps.encode_opened(ledger.step_id, ledger.position, opened)

    def _agree(self, stream: _Stream, opening: steps.Open) -> None:
        for role, codecs in opening.codecs.by_role():
            check_codecs(role, codecs)
        stream.codecs = opening.codecs
        stream.inbox.agree(opening.codecs)
        stream.packing = Packing(
            opening.codecs.hidden.to_client, opening.chunk_bytes and min(opening.chunk_bytes, CHUNK_BYTES)
        )
        stream.tells_timings = opening.timings
        stream.can_move = opening.can_move

    def _is_repeated_open(self, session_id: str) -> bool:
        # The answer to an open may be lost too: an open of a session that has done nothing yet is the same open again.
        return self._table.has(session_id) and self._table.ledger(session_id).step_id == 0

    async def _open_new(self, stream: _Stream, opening: steps.Open) -> Ledger:
        session_id = opening.session_id
        # The table first: it refuses a name that is taken, and nobody becomes the owner of another's session.
        attachment = self._table.open(session_id, self._clock())
        self._opening.add(session_id)
        try:
            self._served[session_id] = served = self._services.lease(opening.expected_fingerprint)
            stream.meter.account.open_session(session_id, self._table.has)
            await served.host.open_session(session_id)
        except BaseException:
            self._table.close(session_id, "it could not be opened")
            self._release(session_id)
            raise
        finally:
            self._opening.discard(session_id)
            self._wake(session_id)
        stream.session_id, stream.attachment = session_id, attachment
        self._statistics.sessions_opened += 1
        self._observer.on_session_opened()
        return self._table.ledger(session_id)

    async def _resume(self, stream: _Stream, opening: steps.Open) -> Ledger:
        session_id = opening.session_id
        stream.meter.account.check_owns(session_id)
        attachment = self._table.resume(session_id, self._clock())
        stream.session_id, stream.attachment = session_id, attachment
        # A step that came over the old stream may still be running, or the host may still make room.
        while self._table.ledger(session_id).is_running or session_id in self._opening:
            await self._waiting.setdefault(session_id, asyncio.Event()).wait()
        ledger = self._table.ledger(session_id)
        self._served[session_id].validator.check_fingerprint(opening.expected_fingerprint)
        return ledger

    async def _close(self, stream: _Stream, step_id: int) -> Outgoing:
        session_id, stream.session_id = stream.session_id, ""
        if self._table.has(session_id):
            self._table.use(session_id, stream.attachment, self._clock())
            self._table.close(session_id)
            self._observer.on_session_closed("closed")
            if stream.served is not None:
                stream.served.is_done = True
            await self._close_at_host(session_id)
        return steps.encode_done(step_id, 0)

    async def _export(self, stream: _Stream) -> Outgoing:
        ledger = self._ledger_of(stream)
        served = self._served[ledger.session_id]
        cache = await served.host.export_session(ledger.session_id) if served.is_stateful else KVEntries((), 0)
        state = SessionState(replace(cache, position=ledger.position), ledger.batch)
        reply = steps.encode_state(ledger.step_id, ledger.position, state, stream.codecs.kv.to_client)
        # What a codec has made small is as large again on the other side.
        if (num_bytes := max(len(reply), cache.num_bytes)) > self._config.max_message_bytes:
            raise MessageTooLargeError(f"the session has {num_bytes} bytes; {self._config.max_message_bytes} are sent")
        return reply

    async def _import(self, stream: _Stream, request: steps.Request, state: SessionState) -> Outgoing:
        ledger = self._ledger_of(stream)
        served = self._served[ledger.session_id]
        served.validator.check_state(state, request.position)
        ledger.adopt(request.step_id, state.cache.position, state.batch)
        try:
            if served.is_stateful:
                await served.host.import_session(ledger.session_id, state.cache)
        except BaseException:
            await self._end(ledger, "its state could not be imported")
            raise
        finally:
            ledger.abandon()
            self._wake(ledger.session_id)
        if not self._table.has(ledger.session_id):
            await served.host.close_session(ledger.session_id)  # closed meanwhile: what was imported has no owner
        return steps.encode_done(ledger.step_id, ledger.position)

    def _ledger_of(self, stream: _Stream) -> Ledger:
        if not stream.session_id:
            raise InvalidRequestError("no session is open on this stream; the first message has to open one")
        return self._table.use(stream.session_id, stream.attachment, self._clock())

    async def _step(self, stream: _Stream, request: steps.Request, action: Action) -> Outgoing:
        ledger = self._ledger_of(stream)
        verdict = ledger.admit(request.step_id, request.position, effect_of(action))
        if isinstance(verdict, Replay):
            self._statistics.replays += 1
            assert isinstance(verdict.reply, Outgoing)
            return verdict.reply
        try:
            tensor, compute_s = await self._run(ledger, action)
            stream.compute_s = compute_s
            try:
                reply = self._encoded(stream, request.step_id, verdict.position, tensor, compute_s)
            except Exception:
                # The host has done the step: its number must not become free again.
                await self._end(ledger, "the answer to a step of it could not be put into a message")
                raise
            if len(reply) > self._config.max_message_bytes:
                await self._lose(ledger, len(reply))
            ledger.commit(reply)
            stream.meter.account.keep_reply(ledger.session_id, len(reply))
        finally:
            ledger.abandon()
            self._wake(stream.session_id)
        self._statistics.steps += 1
        return reply

    async def _run(self, ledger: Ledger, action: Action) -> tuple[torch.Tensor | None, float]:
        """Have the host do a step; returns its answer and the seconds it took."""
        served = self._served[ledger.session_id]
        if isinstance(action, Forward):
            served.validator.check_forward(action, ledger.position)
        began_s = time.perf_counter()
        try:
            tensor = await served.host.run_step(ledger.session_id, action)
        except CommError:
            raise
        except Exception:
            if served.is_stateful:
                # Some of its state may have changed and some not; its room is free for others.
                await self._end(ledger, "a step of it failed inside the service")
            raise
        return tensor, time.perf_counter() - began_s

    def _encoded(
        self, stream: _Stream, step_id: int, position: int, tensor: torch.Tensor | None, compute_s: float
    ) -> Outgoing:
        began_s = time.perf_counter()
        reply = steps.encode_done(step_id, position, tensor, stream.packing)
        if not stream.tells_timings:
            return reply
        serialise_s, queue_s = time.perf_counter() - began_s, began_s - stream.arrived_s - compute_s
        return steps.with_timings(reply, Timings(queue_s=queue_s, compute_s=compute_s, serialise_s=serialise_s))

    async def _end(self, ledger: Ledger, reason: str) -> None:
        if self._table.has(ledger.session_id):
            self._observer.on_session_closed("failed")
        self._table.close(ledger.session_id, reason)
        await self._close_at_host(ledger.session_id)

    async def _lose(self, ledger: Ledger, reply_bytes: int) -> None:
        # The host has done the step, so it cannot be refused any more: the session is beyond repair.
        await self._end(ledger, f"the answer to step {ledger.step_id + 1} was too large to send")
        raise MessageTooLargeError(
            f"the answer has {reply_bytes} bytes, and the server sends at most {self._config.max_message_bytes}; "
            f"the session is closed: open another with a smaller batch or shorter steps, "
            f"or raise max_message_bytes on both sides"
        )

    def _wake(self, session_id: str) -> None:
        if self._waiting and (event := self._waiting.pop(session_id, None)):
            event.set()

    async def _close_at_host(self, session_id: str) -> None:
        try:
            await self._served[session_id].host.close_session(session_id)
        except Exception as error:
            logger.error("the host failed to close session %s\n%s", session_id, told_without_contents(error))
        finally:
            self._release(session_id)

    def _release(self, session_id: str) -> None:
        if served := self._served.pop(session_id, None):
            served.release()

    def num_open(self) -> int:
        """Sessions open now."""
        return len(self._table)


def _summary(
    stream: _Stream, request: steps.Request | None, refusal: CommError | None, bytes_received: int, bytes_sent: int
) -> StepSummary:
    """What to tell of the message that was answered."""
    compute_s, stream.compute_s = stream.compute_s, 0.0
    pending_bytes, stream.pending_bytes = stream.pending_bytes, 0
    return StepSummary(
        action=action_name(request and request.action),
        code=refusal.code if refusal else grpc.StatusCode.OK,
        step_id=request.step_id if request else 0,
        seconds=time.perf_counter() - stream.arrived_s,
        compute_s=compute_s,
        bytes_received=pending_bytes + bytes_received,
        bytes_sent=bytes_sent,
    )


def _takes_up(request: steps.Request) -> bool:
    """Whether a message goes on with a session on a new stream."""
    return isinstance(request.action, steps.Open) and request.action.resume


def effect_of(action: Action) -> Effect:
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
