"""The peers to compare with: a gRPC echo stream of bytes and a TCP echo, with nothing of ours in the way.

A trip sends one message and returns the answer. The servers are grpc.aio servers like ours, with one process each and
the answer made where the message arrived; messages have the same limit as ours, and each channel has a connection of
its own as our clients have.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import grpc
import torch

from splitlearn_comm.protocol import MAX_MESSAGE_BYTES

METHOD = "/raw.Echo/Stream"
LIMITS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
CHANNEL_OPTIONS = (*LIMITS, ("grpc.use_local_subchannel_pool", 1))

Answer = Callable[[bytes], bytes]
"""Makes the server's answer of the same length as the message."""


def unchanged(data: bytes) -> bytes:
    """Echo."""
    return data


def serve_echo(ready: Connection, *, answer: Answer = unchanged) -> None:
    """Answer each message of a stream until the process is ended; sends the address when it listens."""
    torch.set_num_threads(1)

    async def echo(_: object, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            await context.write(answer(data))

    async def serve() -> None:
        server = grpc.aio.server(options=LIMITS)
        handlers = {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw.Echo", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(serve())


def serve_tcp(ready: Connection, *, num_bytes: int, answer: Answer = unchanged) -> None:
    """Answer each so many bytes, one connection after another, until the process is ended."""
    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready.send(f"127.0.0.1:{listener.getsockname()[1]}")
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := connection.recv(num_bytes, socket.MSG_WAITALL):
                    connection.sendall(answer(data))


@contextmanager
def echo_trip(address: str, payload: bytes) -> Iterator[Callable[[], bytes]]:
    """Yield the trip of gRPC's synchronous client, which sends what an iterator gives it on a thread of its own."""
    outbox: SimpleQueue[bytes] = SimpleQueue()
    with grpc.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        replies: Any = channel.stream_stream(METHOD, None, None)(iter(outbox.get, b""))

        def trip() -> bytes:
            outbox.put(payload)
            reply: bytes = next(replies)
            return reply

        yield trip
        outbox.put(b"")
        replies.cancel()


@asynccontextmanager
async def async_echo_trip(address: str, payload: bytes) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """Yield the trip of gRPC's asyncio client."""
    async with grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        method: Any = channel.stream_stream(METHOD, None, None)
        call = method()

        async def trip() -> bytes:
            await call.write(payload)
            reply: bytes = await call.read()
            return reply

        yield trip
        call.cancel()


@contextmanager
def tcp_trip(address: str, payload: bytes) -> Iterator[Callable[[], bytes]]:
    """Yield the trip of a blocking socket."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def trip() -> bytes:
            connection.sendall(payload)
            return connection.recv(len(payload), socket.MSG_WAITALL)

        yield trip
