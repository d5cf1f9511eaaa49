"""A server that hands each message on to another one, but for the faults it was told to make."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

import splitlearn_comm.protocol as protocol
from splitlearn_comm.server.loop import server_loop
from splitlearn_comm.testing.direction import Direction
from splitlearn_comm.testing.faults import Cut, Delay, Drop, Duplicate, Fault, RelayStatistics, Schedule
from splitlearn_comm.testing.relayed_call import Context, RelayedCall, Send, StreamBroken, metadata_of

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class FaultyRelay:
    """Stands between clients and a server, and spoils chosen messages of their streams.

    It knows no message: bytes come in, the same bytes go out. Every method of every service is handed on, status and
    metadata included; only the messages of one method are counted, and spoiled. The same schedule does the same each
    time, as long as one client speaks at a time. ::

        with FaultyRelay(server.address, {(Direction.TO_CLIENT, 3): Drop()}) as relay, Client(relay.address) as client:
            ...  # the fourth answer is lost, and the stream with it

    Args:
        target: Where the server is: `host:port` or `unix:/path`.
        schedule: Which message meets what.
        method: Whose messages, as gRPC writes it: `/package.Service/Method`.
    """

    def __init__(self, target: str, schedule: Schedule, *, method: str = protocol.SESSION) -> None:
        self._target = target
        self._schedule = dict(schedule)
        self._method = method
        self._seen: Counter[Direction] = Counter()
        self._done: Counter[type[Fault]] = Counter()
        self._num_streams = 0
        self._calls: set[RelayedCall] = set()
        self._is_closed = False
        self._port = server_loop().run(self._start())

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self._port}"

    def statistics(self) -> RelayStatistics:
        """What it has seen and done up to now."""
        return RelayStatistics(
            streams=self._num_streams,
            requests=self._seen[Direction.TO_SERVER],
            replies=self._seen[Direction.TO_CLIENT],
            dropped=self._done[Drop],
            cut=self._done[Cut],
            duplicated=self._done[Duplicate],
            delayed=self._done[Delay],
        )

    def close(self) -> None:
        """End all streams and stop. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            server_loop().run(self._stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _start(self) -> int:
        self._channel = grpc.aio.insecure_channel(self._target, _OPTIONS)
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((_AnyMethod(self._serve),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def _stop(self) -> None:
        await self._server.stop(None)
        await asyncio.gather(*(call.abandon() for call in tuple(self._calls)))
        await self._channel.close(None)
        # The server's handlers hold this object: left here, both would stay until the garbage collector comes by.
        del self._server, self._channel

    async def _serve(self, method: str, context: Context) -> None:
        """Relay one call of any method."""
        is_chosen = method == self._method
        self._num_streams += is_chosen
        relayed = RelayedCall(
            context,
            self._open(method)(metadata=metadata_of(context), timeout=context.time_remaining()),
            self._deliver_spoiled if is_chosen else _deliver,
        )
        self._calls.add(relayed)
        relayed.when_over(self._calls.discard)
        await relayed.run()

    def _open(self, method: str) -> Any:
        return self._channel.stream_stream(method, None, None)

    async def _deliver_spoiled(self, message: bytes, direction: Direction, send: Send) -> None:
        """Hand a message on, with what the schedule says happens to it."""
        fault = self._schedule.get((direction, self._seen[direction]))
        self._seen[direction] += 1
        if fault is not None:
            self._done[type(fault)] += 1
        match fault:
            case Drop():
                raise StreamBroken
            case Cut():
                raise StreamBroken(last=message)
            case Duplicate():
                await send(message)
            case Delay(delay_s):
                await asyncio.sleep(delay_s)
        await send(message)


async def _deliver(message: bytes, direction: Direction, send: Send) -> None:
    await send(message)


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """A call of any kind is a stream of messages each way; a unary one has one."""

    def __init__(self, serve: Callable[[str, Context], Awaitable[None]]) -> None:
        self._serve = serve

    def service(self, handler_call_details: Any) -> Any:
        """The handler of one call."""

        async def serve(_: object, context: Context) -> None:
            await self._serve(handler_call_details.method, context)

        return grpc.stream_stream_rpc_method_handler(serve)
