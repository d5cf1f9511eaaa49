"""One asyncio stream: a message out, its answer in."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.client.cursor import is_stale
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import gone, translate
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.errors import CommError, RemoteInternalError
from splitlearn_comm.framing.chunks import Outgoing, messages_of
from splitlearn_comm.framing.steps import Answer, Inbox

_END = grpc.aio.EOF  # type: ignore[attr-defined]


class AsyncStream:
    """A Session call of an asyncio channel.

    Args:
        call: The call, taking and giving bytes.
        address: Where it goes, for messages.
        inbox: Reads what comes.
        statistics: Where to count.
    """

    def __init__(self, call: Any, address: str, inbox: Inbox, statistics: ClientStatistics) -> None:
        self._call = call
        self._inbox = inbox
        self._address = address
        self._statistics = statistics

    async def exchange(self, message: Outgoing, deadline: Deadline, step_id: int = 0) -> Answer:
        """Send a message and wait for its answer; arguments and errors as in `SyncStream.exchange`."""
        self._statistics.count_sent(len(message))
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                for piece in messages_of(message):
                    await self._call.write(piece)
                return await self._answer_to(step_id)
        except TimeoutError as error:
            raise deadline.exceeded() from error
        except grpc.RpcError as error:
            raise self._translated(error, deadline) from error
        except asyncio.InvalidStateError as error:
            raise gone(self._address, str(error)) from error

    async def _answer_to(self, step_id: int) -> Answer:
        while (data := await self._call.read()) is not _END:
            self._statistics.bytes_received += len(data)
            answer = self._inbox.answer(data)
            if answer is not None and not is_stale(answer, step_id):
                return answer
        raise gone(self._address, "it ended the stream")

    def _translated(self, error: grpc.RpcError, deadline: Deadline) -> CommError:
        translated = translate(error, self._address, deadline.timeout_s)
        if isinstance(translated, RemoteInternalError) and translated.request_id is None:
            # A write to a connection that broke before: gRPC reports a failed batch of its own, not the reason.
            return gone(self._address, "the stream broke")
        return translated

    def close(self) -> None:
        """End the stream, whatever it is doing."""
        self._call.cancel()
