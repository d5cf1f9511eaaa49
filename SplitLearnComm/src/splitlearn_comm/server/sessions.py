"""The streams of a server, one for each session: their tasks, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.errors import AuthenticationError, CommError, ResourceExhaustedError
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.chunks import messages_of
from splitlearn_comm.observer import Observer
from splitlearn_comm.protocol import DRAINING_METADATA
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.conversation import Conversation
from splitlearn_comm.server.faults import abort, as_comm_error, logger
from splitlearn_comm.server.handover import Decision, Handover
from splitlearn_comm.server.open_sessions import OpenSessions
from splitlearn_comm.server.security.accounts import Meter
from splitlearn_comm.server.security.caller import CALLER
from splitlearn_comm.server.security.identity import REVOKED
from splitlearn_comm.server.security.tokens import Acquaintance
from splitlearn_comm.server.served import Services
from splitlearn_comm.server.statistics import ServerStatistics
from splitlearn_comm.server.watching import SERVED

LOOK_S = 0.02
"""How often a server that stops looks whether there is anybody left to wait for."""
_END = grpc.aio.EOF  # type: ignore[attr-defined]


@dataclass(slots=True)
class _Stream:
    conversation: Conversation
    is_busy: bool = False
    """Whether a message is being answered."""
    has_read: bool = False
    acquaintance: Acquaintance | None = None
    ending: CommError | None = None
    """Why it is to end; None while it goes on."""
    is_called: bool = False
    """Whether its client was asked to come and take its session elsewhere."""


class SessionService:
    """Serves the Session call.

    A stream is served by a task of its own: gRPC cancels the call's handler when the connection breaks, and a step that
    is running then has to come to its end, be booked and be remembered, for the client that comes back for its answer.

    Args:
        services: Where hosts are leased.
        config: Limits.
        statistics: Where to count.
        observer: Is told of each session that opens and ends.
    """

    def __init__(
        self,
        services: Services,
        config: GRPCServerConfig,
        statistics: ServerStatistics,
        observer: Observer | None = None,
    ) -> None:
        self._config = config
        self._statistics = statistics
        self._sessions = OpenSessions(services, config, statistics, observer or Observer())
        self._clock = asyncio.get_running_loop().time
        self._streams: dict[asyncio.Task[None], _Stream] = {}
        self._is_draining = False
        self._drains_since_s = 0.0

    def __repr__(self) -> str:
        return f"<{len(self._streams)} streams, {self._sessions!r}>"

    def num_open(self) -> int:
        """Sessions open now."""
        return len(self._sessions)

    def use_adapter(self, client: str, adapter: str) -> None:
        """Note that a call of a client computes with an adapter; empty for none."""
        self._sessions.use_adapter(client, adapter)

    async def serve(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """The handler of one stream."""
        stream = _Stream(self._conversation(), acquaintance=CALLER.get().acquaintance)
        task = asyncio.create_task(self._serve_stream(stream, context))
        self._streams[task] = stream
        task.add_done_callback(self._streams.pop)
        await asyncio.shield(task)

    def _conversation(self) -> Conversation:
        meter = Meter(CALLER.get().account, self._config.max_message_bytes)
        conversation = Conversation(self._sessions, meter, self._config, self._statistics, SERVED.get())
        conversation.is_draining = self._is_draining
        return conversation

    async def expire_for_ever(self) -> None:
        """Close sessions whose time is over, and end the streams of tokens that were taken out, until cancelled."""
        shortest = min(self._config.idle_session_timeout_s, self._config.detached_session_timeout_s)
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            try:
                self._end_revoked()
                self._sessions.expire()
            except Exception:
                logger.exception("looking after the sessions failed; it goes on")

    def _end_revoked(self) -> None:
        for task, stream in self._streams.items():
            if stream.ending is None and stream.acquaintance is not None and stream.acquaintance.is_over():
                stream.ending = AuthenticationError(REVOKED)
                if not stream.is_busy:
                    task.cancel()

    def drain(self) -> None:
        """Open no more sessions; end each stream after the step it is running, the idle ones now.

        Streams whose clients can take their sessions elsewhere go on, and are asked to do so; those of trainings too,
        until they are saved.
        """
        self._is_draining = True
        for stream in self._streams.values():
            stream.conversation.is_draining = True
        self._end_idle()

    def _end_idle(self) -> None:
        for task, stream in self._streams.items():
            if not stream.is_busy and not stream.conversation.may_go_on:
                task.cancel()

    async def wait_for_moves(self, timeout_s: float) -> None:
        """Wait until the clients that can have taken their sessions elsewhere, or saved what trains; after the timeout
        end them too.
        """
        self._drains_since_s = self._clock()
        end_s = self._drains_since_s + timeout_s
        handover = Handover(self._config.drain_idle_timeout_s)
        # Time decides, and clients that come and go: there is nothing to wait on but the next look.
        while self._hand_over(handover) and (left_s := end_s - self._clock()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(LOOK_S, left_s))
        for stream in self._streams.values():
            stream.conversation.is_given_up = True
        self._end_idle()

    def _hand_over(self, handover: Handover) -> bool:
        """Call the clients of idle sessions; returns whether there is any to wait for."""
        now_s = self._clock()
        for task, stream in self._streams.items():
            conversation = stream.conversation
            if not conversation.may_go_on or stream.is_busy:
                continue
            is_training, idle_s = conversation.is_training, conversation.idle_s()
            if is_training:  # it may have been at its own part for long when the server began to drain
                idle_s = min(idle_s, now_s - self._drains_since_s)
            match handover.decide(conversation.session_id, idle_s, is_training=is_training):
                case Decision.CALL:
                    stream.is_called = True
                    handover.called(conversation.session_id, self._sessions.attachment(conversation.session_id), now_s)
                    task.cancel()
                case Decision.END:
                    conversation.is_given_up = True
                    self._sessions.give_up(conversation.session_id)
                    task.cancel()
                case Decision.WAIT:
                    pass
        is_moving = any(stream.conversation.may_go_on and not stream.is_called for stream in self._streams.values())
        is_between = self._sessions.has_training_between_streams(self._config.drain_idle_timeout_s)
        return handover.is_waiting(self._sessions.attachment, now_s) or is_moving or is_between

    async def stop(self) -> None:
        """Cut off what drains no more, and close all sessions."""
        for task in self._streams:
            task.cancel()
        if self._streams:
            await asyncio.wait(self._streams)
        await self._sessions.end_all()

    async def _serve_stream(self, stream: _Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            await self._converse(stream, context)
        except asyncio.CancelledError:
            if not self._is_draining and stream.ending is None:
                raise
        except ResourceExhaustedError as error:
            await _refuse(context, as_comm_error(error, f"the stream of {stream.conversation!r}"))
        except Exception:
            # Whatever gRPC raises for a connection that broke: the session waits for its client to come back.
            logger.debug("the stream of %r broke", stream.conversation, exc_info=True)
        finally:
            stream.conversation.end()
        if stream.ending is not None:
            await _refuse(context, as_comm_error(stream.ending, f"to go on with the stream of {stream.conversation!r}"))
        if self._is_draining:
            with contextlib.suppress(grpc.aio.InternalError):
                # Of a client that has left already, gRPC complains.
                metadata = ((DRAINING_METADATA, "1"),) if stream.is_called else ()
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping", metadata)

    async def _converse(self, stream: _Stream, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        conversation = stream.conversation
        # The first message of a stream is read while draining too: a client may come back for its session.
        while (conversation.may_go_on or not stream.has_read or not self._is_draining) and (
            data := await context.read()
        ) is not _END:
            stream.is_busy = stream.has_read = True
            conversation.receive(len(data))
            reply = await conversation.answer(data, self._clock())
            if reply is not None:
                for message in messages_of(reply):
                    await context.write(message)
            stream.is_busy = False
            if stream.ending is not None:
                return
            if conversation.pause_s:
                await asyncio.sleep(conversation.pause_s)
                conversation.pause_s = 0.0


async def _refuse(context: grpc.aio.ServicerContext[Any, Any], error: CommError) -> None:
    """End a stream, and say why in an answer too: an asyncio client that is writing never sees the status."""
    with contextlib.suppress(grpc.aio.InternalError):
        await context.write(steps.encode_refusal(0, 0, error))
    await abort(context, error)
