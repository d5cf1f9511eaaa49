"""One connection through the link."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from splitlearn_comm.testing.direction import Direction
from splitlearn_comm.testing.link.delay_line import DelayLine, Piece
from splitlearn_comm.testing.link.endpoint import Ends
from splitlearn_comm.testing.link.lane import MAX_PIECE_BYTES
from splitlearn_comm.testing.link.way import Way

_AHEAD_S = 0.02
"""Pieces are taken this long before it is their turn: a busy machine wakes it late, and the link would idle."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection:
    """Two streams joined to one, with the link between them.

    The end of a stream arrives behind its bytes; a reset is passed on at once.

    Args:
        client: Towards the client.
        server: Towards the server.
        ways: Both directions of the link.
        buffer_bytes: How much may be underway in each direction.
    """

    def __init__(self, client: Ends, server: Ends, ways: dict[Direction, Way], buffer_bytes: int) -> None:
        self._writers = (client[1], server[1])
        self._pipes = (
            _Pipe(client[0], server[1], ways[Direction.TO_SERVER], buffer_bytes),
            _Pipe(server[0], client[1], ways[Direction.TO_CLIENT], buffer_bytes),
        )

    async def run(self) -> None:
        """Carry bytes until both streams have ended, or one was reset."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for pipe in self._pipes:
                    tasks.create_task(pipe.take())
                    tasks.create_task(pipe.deliver())
        except* OSError:
            self.reset()
        finally:
            await self._close()

    def reset(self) -> None:
        """Break it, in the way that a peer notices at once."""
        for writer in self._writers:
            reset(writer)

    async def _close(self) -> None:
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class _Pipe:
    """One direction of one connection."""

    def __init__(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: Way, buffer_bytes: int) -> None:
        # Without room in the transport, `drain` waits until the kernel has taken everything.
        sink.transport.set_write_buffer_limits(high=0)
        self._source = source
        self._sink = sink
        self._way = way
        self._line = DelayLine(buffer_bytes)
        self._clock = asyncio.get_running_loop().time

    async def take(self) -> None:
        """Read from one side and send it on its way, at the link's speed."""
        while data := await self._read():
            rest = memoryview(data)
            while rest:
                num_bytes = self._way.lane.piece_bytes
                await self._send(bytes(rest[:num_bytes]))
                rest = rest[num_bytes:]
        await self._send(b"")

    async def deliver(self) -> None:
        """Write to the other side what has arrived."""
        while True:
            piece = await self._line.get()
            await self._way.is_flowing.wait()
            if not piece.data:
                break
            data = self._way.allowed(piece.data)
            self._sink.write(data)
            await self._sink.drain()
            self._way.count(len(data))
        if self._sink.can_write_eof():
            self._sink.write_eof()

    async def _read(self) -> bytes:
        try:
            return await self._source.read(MAX_PIECE_BYTES)
        except OSError:
            # Over a link that hangs the other side does not hear of it.
            await self._way.is_flowing.wait()
            raise

    async def _send(self, data: bytes) -> None:
        await self._way.is_flowing.wait()
        passage = self._way.lane.send(len(data), self._clock())
        await asyncio.sleep(passage.sent_at_s - _AHEAD_S - self._clock())
        await self._line.put(Piece(data, passage.arrives_at_s))


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a stream so that the peer sees a reset, not an end; over a Unix socket it sees an end."""
    stream_socket = writer.get_extra_info("socket")
    if stream_socket is not None and stream_socket.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            stream_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
