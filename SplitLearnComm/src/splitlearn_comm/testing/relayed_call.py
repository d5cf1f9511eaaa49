"""One call on its way through a `FaultyRelay`, and how it breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.testing.direction import Direction

Context = grpc.aio.ServicerContext[Any, Any]
Send = Callable[[bytes], Awaitable[Any]]
Deliver = Callable[[bytes, Direction, Send], Awaitable[None]]
_END = grpc.aio.EOF  # type: ignore[attr-defined]
_SET_BY_GRPC = ("grpc-", "user-agent", "content-type", "te")


class StreamBroken(Exception):
    """Break the stream now.

    Args:
        last: A message that is still to arrive.
    """

    def __init__(self, last: bytes | None = None) -> None:
        super().__init__("the connection was lost, as the relay was told")
        self.last = last


class RelayedCall:
    """Two streams with the same messages: from a client to the relay, and from there to the server.

    Args:
        context: Of the client's stream.
        call: The stream to the server.
        deliver: Takes each message, its direction and the function that sends it on; raises `StreamBroken`.
    """

    def __init__(self, context: Context, call: Any, deliver: Deliver) -> None:
        self._context = context
        self._call = call
        self._deliver = deliver
        self._is_broken = self._is_cut_behind_request = self._is_over = False
        self._writing = asyncio.Lock()
        self._requests = asyncio.create_task(self._relay_requests())
        self._replies = asyncio.create_task(self._relay_replies())

    async def run(self) -> None:
        """Relay until the server has ended the call, then end it in the same way."""
        try:
            await asyncio.wait({self._requests, self._replies}, return_when=asyncio.FIRST_COMPLETED)
            if self._requests.done():
                self._requests.result()
            await self._replies
            await self._end_as_the_server_did()
        except StreamBroken as order:
            await self._break(order)
        finally:
            if not self._is_cut_behind_request:
                self._hang_up()
            await self._stop(self._requests)
            self._replies.add_done_callback(self._let_go)

    def when_over(self, notify: Callable[[RelayedCall], object]) -> None:
        """Have it called when the server has ended the call too: behind a cut that is later than for the client."""

        def replies_ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                task.exception()  # looked at here, where the client is gone and nobody else does
            notify(self)

        self._replies.add_done_callback(replies_ended)

    async def abandon(self) -> None:
        """End the call to the server, whatever it is doing."""
        if not self._is_over:
            self._hang_up()
            await asyncio.wait({self._replies})

    async def _relay_requests(self) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            # Those say that the server has ended the call; how, comes with the replies.
            while (message := await self._context.read()) is not _END and not self._is_broken:
                await self._relay(message, Direction.TO_SERVER, self._send_on)
            await self._call.done_writing()

    async def _relay_replies(self) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
            while (message := await self._call.read()) is not _END:
                if not self._is_broken:
                    await self._relay(message, Direction.TO_CLIENT, self._send_back)

    async def _send_on(self, message: bytes) -> None:
        await self._call.write(message)

    async def _send_back(self, message: bytes) -> None:
        async with self._writing:
            await self._context.write(message)

    async def _relay(self, message: bytes, direction: Direction, send: Send) -> None:
        try:
            await self._deliver(message, direction, send)
        except StreamBroken as order:
            # Before anything is awaited: from here on nothing else gets through, either way.
            self._is_broken = True
            if order.last is not None:
                await send(order.last)
            raise

    async def _end_as_the_server_did(self) -> None:
        code, details = await self._call.code(), await self._call.details()
        metadata = tuple(await self._call.trailing_metadata() or ())
        if code is not grpc.StatusCode.OK:
            await self._context.abort(code, details, metadata)
        self._context.set_trailing_metadata(metadata)

    async def _break(self, order: StreamBroken) -> None:
        self._is_cut_behind_request = order.last is not None and not self._replies.done()
        if self._is_cut_behind_request:
            # Not cancelled, so that the request certainly arrives; the answer to it is thrown away.
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await self._call.done_writing()
        await self._stop(self._requests)
        # The client may have what was written last before gRPC says so here, and a stream that still writes cannot be
        # ended: its client would wait for ever.
        async with self._writing:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, str(order))

    def _hang_up(self) -> None:
        self._call.cancel()
        self._replies.cancel()  # it may be holding a late message back

    def _let_go(self, _: object) -> None:
        # gRPC keeps the frames of a call that was aborted, and they keep this object: with the call in it, or tasks
        # whose tracebacks hold it, the connection to the server would stay open until the garbage collector comes by.
        self._is_over = True
        del self._call, self._requests, self._replies

    async def _stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def metadata_of(context: Context) -> tuple[tuple[str, str | bytes], ...]:
    """What the client sent beside its messages, less what gRPC adds by itself."""
    given: Any = context.invocation_metadata() or ()
    return tuple((key, value) for key, value in given if not key.startswith(_SET_BY_GRPC))
