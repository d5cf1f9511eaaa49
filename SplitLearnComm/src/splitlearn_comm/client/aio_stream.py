"""One asyncio stream: a message out, its answer in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.client.awaited import Awaited, is_stale
from splitlearn_comm.client.closing import closed_here, is_cancelled_by_its_owner
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import calls_away, gone, translate
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.errors import CommError
from splitlearn_comm.framing.chunks import ChunkedMessage, Outgoing, messages_of
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.framing.steps import Answer, with_timeout

WRITE_FAILED = "Internal error from Core"
"""What gRPC says of a stream that ended while something was written to it."""
_PAUSES_S = (0.0, 0.001, 0.01, 0.05)
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

    async def exchange(
        self, message: Outgoing, deadline: Deadline, step_id: int = 0, awaited: Awaited = Awaited.STEP
    ) -> Answer:
        """Send a message and wait for its answer; arguments and errors as in `SyncStream.exchange`."""
        remaining_s = deadline.remaining_s()
        if deadline.is_told and awaited is Awaited.STEP:
            message = with_timeout(message, remaining_s)
        self._statistics.count_sent(len(message))
        try:
            async with asyncio.timeout(remaining_s):
                if isinstance(message, bytes):
                    await self._call.write(message)
                    return await self._answer_to(step_id, awaited)
                return await self._exchange_chunks(message, step_id, awaited)
        except TimeoutError as error:
            raise deadline.exceeded() from error
        except asyncio.CancelledError:
            if is_cancelled_by_its_owner():
                raise
            raise closed_here() from None
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise await self._reason(deadline) from error

    async def _exchange_chunks(self, message: ChunkedMessage, step_id: int, awaited: Awaited) -> Answer:
        # Read from the beginning on: where the stream ends meanwhile, only one who reads is told why.
        reading = asyncio.create_task(self._answer_to(step_id, awaited))
        try:
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                for piece in messages_of(message):
                    await self._call.write(piece)
            return await reading
        finally:
            reading.cancel()

    async def _answer_to(self, step_id: int, awaited: Awaited) -> Answer:
        while (data := await self._call.read()) is not _END:
            self._statistics.bytes_received += len(data)
            answer = self._inbox.answer(data)
            if answer is not None and not is_stale(answer, step_id, awaited):
                return answer
        raise gone(self._address, "it ended the stream")

    async def _reason(self, deadline: Deadline) -> CommError:
        """Why the stream ended, as its status says.

        A write that fails puts a status of its own, which gives no reason, in the place of the server's. Where somebody
        reads, that comes a moment later; else the stream just broke, and a new one will tell.
        """
        for pause_s in _PAUSES_S:
            await asyncio.sleep(pause_s)
            if await self._call.details() != WRITE_FAILED:
                return await self._status(deadline)
        return gone(self._address, "the stream broke")

    async def _status(self, deadline: Deadline) -> CommError:
        call = self._call
        code, details = await call.code(), await call.details()
        if code is grpc.StatusCode.OK:
            return gone(self._address, "it ended the stream")
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        return translate(
            grpc.aio.AioRpcError(code, initial, trailing, details, details), self._address, deadline.timeout_s
        )

    def when_ended(self, notify: Callable[[AsyncStream], None]) -> None:
        """Have it called when the stream has ended."""
        self._call.add_done_callback(lambda _: notify(self))

    async def was_called_away(self) -> bool:
        """Whether the stream, which has ended, did so because its server stops."""
        return calls_away(await self._call.trailing_metadata())

    def close(self) -> None:
        """End the stream, whatever it is doing."""
        self._call.cancel()
