"""One asyncio stream: a message out, its answer in."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import gone, translate
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.errors import CommError, RemoteInternalError

_END = grpc.aio.EOF  # type: ignore[attr-defined]


class AsyncStream:
    """A Session call of an asyncio channel.

    Args:
        call: The call, taking and giving bytes.
        address: Where it goes, for messages.
        statistics: Where to count.
    """

    def __init__(self, call: Any, address: str, statistics: ClientStatistics) -> None:
        self._call = call
        self._address = address
        self._statistics = statistics

    async def exchange(self, message: bytes, deadline: Deadline) -> bytes:
        """Send a message and wait for its answer.

        Raises:
            DeadlineExceededError: It did not come in time; the stream is of no more use.
            ServerUnavailableError: The stream broke.
            CommError: The stream ended for another reason.
        """
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await self._call.write(message)
                answer = await self._call.read()
        except TimeoutError as error:
            raise deadline.exceeded() from error
        except grpc.RpcError as error:
            raise self._translated(error, deadline) from error
        except asyncio.InvalidStateError as error:
            raise gone(self._address, str(error)) from error
        if answer is _END:
            raise gone(self._address, "it ended the stream")
        self._statistics.count(message, answer)
        return answer  # type: ignore[no-any-return]

    def _translated(self, error: grpc.RpcError, deadline: Deadline) -> CommError:
        translated = translate(error, self._address, deadline.timeout_s)
        if isinstance(translated, RemoteInternalError) and translated.request_id is None:
            # A write to a connection that broke before: gRPC reports a failed batch of its own, not the reason.
            return gone(self._address, "the stream broke")
        return translated

    def close(self) -> None:
        """End the stream, whatever it is doing."""
        self._call.cancel()
