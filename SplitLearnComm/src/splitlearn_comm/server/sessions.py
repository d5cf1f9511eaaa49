"""Sessions over their streams: reads a message, asks the book what to do, has the host do it, answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc.aio

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import InvalidRequestError, MessageTooLargeError
from splitlearn_comm.framing import steps
from splitlearn_comm.host import SessionHost
from splitlearn_comm.messages import Forward
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.faults import as_comm_error, logger
from splitlearn_comm.server.statistics import ServerStatistics
from splitlearn_comm.session import Ledger, Replay, SessionTable
from splitlearn_comm.validation import Validator

_END = grpc.aio.EOF  # type: ignore[attr-defined]


@dataclass(slots=True)
class _Stream:
    """What a stream is attached to."""

    session_id: str = ""
    attachment: int = 0
    is_busy: bool = False


class SessionService:
    """Serves the Session call.

    A stream is served by a task of its own: gRPC cancels the call's handler when the connection breaks, and a step that
    is running then has to come to its end, be booked and be remembered, for the client that comes back for its answer.
    """

    def __init__(
        self, host: SessionHost, validator: Validator, config: GRPCServerConfig, statistics: ServerStatistics
    ) -> None:
        self._host = host
        self._validator = validator
        self._config = config
        self._statistics = statistics
        self._table = SessionTable(
            max_sessions=config.max_sessions,
            idle_timeout_s=config.idle_session_timeout_s,
            detached_timeout_s=config.detached_session_timeout_s,
        )
        self._clock = asyncio.get_running_loop().time
        self._streams: dict[asyncio.Task[None], _Stream] = {}
        self._is_draining = False
        self._opening: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<{len(self._streams)} streams, {self._table!r}>"

    async def serve(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """The handler of one stream."""
        stream = _Stream()
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
                logger.info("session %s expired", session_id)
                await self._close_at_host(session_id)

    def drain(self) -> None:
        """End each stream after the step it is running, the idle ones now."""
        self._is_draining = True
        for task, stream in self._streams.items():
            if not stream.is_busy:
                task.cancel()

    async def stop(self) -> None:
        """Cut off what drains no more, and close all sessions."""
        for task in self._streams:
            task.cancel()
        if self._streams:
            await asyncio.wait(self._streams)
        for session_id in self._table.close_all():
            await self._close_at_host(session_id)

    async def _serve_stream(self, stream: _Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            await self._converse(stream, context)
        except asyncio.CancelledError:
            if not self._is_draining:
                raise
        except Exception:
            # Whatever gRPC raises for a connection that broke: the session waits for its client to come back.
            logger.debug("the stream of session %s broke", stream.session_id, exc_info=True)
        finally:
            self._table.detach(stream.session_id, stream.attachment, self._clock())
        if self._is_draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

    async def _converse(self, stream: _Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while not self._is_draining and (data := await context.read()) is not _END:
            stream.is_busy = True
            await context.write(await self._answer(stream, data))
            stream.is_busy = False

    async def _answer(self, stream: _Stream, data: bytes) -> bytes:
        request = pb.SessionRequest()
        self._statistics.bytes_received += len(data)
        try:
            request = steps.parse_request(data)
            reply = await self._do(stream, request)
        except Exception as error:
            self._statistics.refusals += 1
            comm_error = as_comm_error(error, f"step {request.step_id} of session {stream.session_id or '(none)'}")
            reply = steps.encode_refusal(request.step_id, request.position, comm_error)
        self._statistics.bytes_sent += len(reply)
        return reply

    async def _do(self, stream: _Stream, request: pb.SessionRequest) -> bytes:
        match request.WhichOneof("action"):
            case "open":
                return await self._open(stream, request)
            case "close":
                return await self._close(stream)
            case _:
                return await self._step(stream, request)

    async def _open(self, stream: _Stream, request: pb.SessionRequest) -> bytes:
        if stream.session_id and self._table.has(stream.session_id):
            raise InvalidRequestError(
                f"this stream has session {stream.session_id}; open another on a stream of its own"
            )
        self._validator.check_fingerprint(request.open.expected_fingerprint)
        if request.open.resume or self._is_repeated_open(request.session_id):
            ledger = await self._resume(stream, request.session_id)
        else:
            ledger = await self._open_new(stream, request.session_id)
        return steps.encode_opened(ledger.step_id, ledger.position, self._config.max_message_bytes)

    def _is_repeated_open(self, session_id: str) -> bool:
        # The answer to an open may be lost too: an open of a session that has done nothing yet is the same open again.
        return self._table.has(session_id) and self._table.ledger(session_id).step_id == 0

    async def _open_new(self, stream: _Stream, session_id: str) -> Ledger:
        attachment = self._table.open(session_id, self._clock())
        self._opening.add(session_id)
        try:
            await self._host.open_session(session_id)
        except BaseException:
            self._table.close(session_id, "it could not be opened")
            raise
        finally:
            self._opening.discard(session_id)
            self._wake(session_id)
        stream.session_id, stream.attachment = session_id, attachment
        self._statistics.sessions_opened += 1
        return self._table.ledger(session_id)

    async def _resume(self, stream: _Stream, session_id: str) -> Ledger:
        attachment = self._table.resume(session_id, self._clock())
        stream.session_id, stream.attachment = session_id, attachment
        # A step that came over the old stream may still be running, or the host may still make room.
        while self._table.ledger(session_id).is_running or session_id in self._opening:
            await self._waiting.setdefault(session_id, asyncio.Event()).wait()
        return self._table.ledger(session_id)

    async def _close(self, stream: _Stream) -> bytes:
        session_id, stream.session_id = stream.session_id, ""
        if self._table.has(session_id):
            self._table.use(session_id, stream.attachment, self._clock())
            self._table.close(session_id)
            await self._close_at_host(session_id)
        return steps.encode_done(0, 0)

    async def _step(self, stream: _Stream, request: pb.SessionRequest) -> bytes:
        if not stream.session_id:
            raise InvalidRequestError("no session is open on this stream; the first message has to open one")
        ledger = self._table.use(stream.session_id, stream.attachment, self._clock())
        verdict = ledger.admit(request.step_id, request.position, steps.effect_of(request))
        if isinstance(verdict, Replay):
            self._statistics.replays += 1
            return verdict.reply
        try:
            reply = await self._run(ledger, request, verdict.position)
            ledger.commit(reply)
        finally:
            ledger.abandon()
            self._wake(stream.session_id)
        self._statistics.steps += 1
        return reply

    async def _run(self, ledger: Ledger, request: pb.SessionRequest, position_after: int) -> bytes:
        action = steps.action_of(request)
        if isinstance(action, Forward):
            self._validator.check_forward(action, ledger.position)
        tensor = await self._host.run_step(ledger.session_id, action)
        reply = steps.encode_done(request.step_id, position_after, tensor)
        if len(reply) > self._config.max_message_bytes:
            await self._lose(ledger, len(reply))
        return reply

    async def _lose(self, ledger: Ledger, reply_bytes: int) -> None:
        # The host has done the step, so it cannot be refused any more: the session is beyond repair.
        reason = f"the answer to step {ledger.step_id + 1} was too large to send"
        self._table.close(ledger.session_id, reason)
        await self._close_at_host(ledger.session_id)
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
            await self._host.close_session(session_id)
        except Exception:
            logger.exception("the host failed to close session %s", session_id)

    def num_open(self) -> int:
        """Sessions open now."""
        return len(self._table)
