"""The link, with its switches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import TracebackType
from typing import Self

from splitlearn_comm.testing.direction import Direction, directions
from splitlearn_comm.testing.link.connection import Connection, reset
from splitlearn_comm.testing.link.endpoint import Ends, endpoint_of
from splitlearn_comm.testing.link.lane import Lane
from splitlearn_comm.testing.link.quality import LinkQuality
from splitlearn_comm.testing.link.statistics import LinkStatistics
from splitlearn_comm.testing.link.way import Way
from splitlearn_comm.testing.own_loop import OwnLoop


class LinkEmulator:
    """A link between clients and a server: slow, narrow, hanging or broken, as asked for.

    A proxy in user space, without privileges, for whatever speaks TCP or over Unix sockets. It works in a thread of its
    own, so that tests may be synchronous or asyncio. Bytes are late by up to about a millisecond more than asked for
    (timers, and the thread itself), never early. ::

        with LinkEmulator(server.address, LinkQuality(latency_s=0.02, bytes_per_s=1e6)) as link:
            client = Client(link.address)
            link.stall()                                                # a cable is pulled: silence, nobody is told
            link.resume()
            link.cut()                                                  # a reset, at both ends
            link.set_quality(LinkQuality(), Direction.TO_CLIENT)        # for what is sent from now on

    Args:
        target: Where the server is: `host:port`, `[::1]:port` or `unix:/path`.
        quality: How good the link is.
        to_client: How good it is on the way back, if different.
        listen: Where clients connect; by default a free port of this machine.
        buffer_bytes: How much of one connection may be underway in one direction. When it is full the sender has to
            wait, so a connection carries at most `buffer_bytes / latency_s` bytes a second.
        seed: Of the random jitter.

    Raises:
        ValueError: One of the addresses is none.
        OSError: It cannot listen there.
    """

    def __init__(
        self,
        target: str,
        quality: LinkQuality | None = None,
        *,
        to_client: LinkQuality | None = None,
        listen: str = "127.0.0.1:0",
        buffer_bytes: int = 4 * 1024 * 1024,
        seed: int = 0,
    ) -> None:
        self._target, self._endpoint = endpoint_of(target), endpoint_of(listen)
        self._buffer_bytes = buffer_bytes
        there = quality or LinkQuality()
        back = to_client or there
        draw = random.Random(seed).random
        self._ways = {
            Direction.TO_SERVER: Way(Lane(there, draw), self._cut_now),
            Direction.TO_CLIENT: Way(Lane(back, draw), self._cut_now),
        }
        self._connections: dict[asyncio.Task[None], Connection | None] = {}
        self._listener: asyncio.Server | None = None
        self._num_connections = self._num_cuts = 0
        self._is_closed = False
        self._loop = OwnLoop("splitlearn-link")
        try:
            self._loop.run(self._listen())
        except BaseException:
            self._loop.close()
            raise

    def __repr__(self) -> str:
        qualities = ", ".join(f"{direction.value}: {way.lane.quality}" for direction, way in self._ways.items())
        return f"<link {self._endpoint} -> {self._target}, {qualities}>"

    @property
    def address(self) -> str:
        """Where clients connect."""
        return str(self._endpoint)

    def set_quality(self, quality: LinkQuality, direction: Direction | None = None) -> None:
        """Make it better or worse, in one direction or both, for what is sent from now on."""

        def change(way: Way) -> None:
            way.lane.quality = quality

        self._change(direction, change)

    def stall(self, direction: Direction | None = None) -> None:
        """Let nothing through any more, in one direction or both, and tell nobody: a half-open link.

        Connections stay open, new ones are taken, and what is sent waits.
        """
        self._change(direction, Way.stall)

    def resume(self, direction: Direction | None = None) -> None:
        """Let through again what a stall has held back."""
        self._change(direction, Way.resume)

    def cut(self) -> None:
        """Reset all connections, at both ends; what is underway is lost. New connections work."""
        self._loop.run(self._cut())

    def cut_after(self, num_bytes: int, direction: Direction) -> None:
        """Cut once so many more bytes have been delivered in this direction, over all connections together.

        Those that the peer's machine has no room for at that moment are lost with the connection, as they would be.
        """
        if num_bytes < 0:
            raise ValueError(f"num_bytes must be 0 or more, came {num_bytes}")
        self._change(direction, lambda way: way.cut_after(num_bytes))

    def refuse(self) -> None:
        """Refuse new connections, as a machine does where nothing listens; those that are open stay."""
        self._loop.run(self._stop_listening())

    def accept(self) -> None:
        """Take new connections again, at the same address. Raises `OSError` if that is no longer free."""
        self._loop.run(self._listen())

    def statistics(self) -> LinkStatistics:
        """What was counted up to now."""
        return LinkStatistics(
            connections=self._num_connections,
            connections_open=len(self._connections),
            bytes_to_server=self._ways[Direction.TO_SERVER].delivered_bytes,
            bytes_to_client=self._ways[Direction.TO_CLIENT].delivered_bytes,
            cuts=self._num_cuts,
        )

    def close(self) -> None:
        """Reset what is open, stop listening and end the thread. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.run(self._end())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _change(self, direction: Direction | None, change: Callable[[Way], None]) -> None:
        """Change one way or both, where they are used: on the loop."""

        async def do() -> None:
            for chosen in directions(direction):
                change(self._ways[chosen])

        self._loop.run(do())

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener, self._endpoint = await self._endpoint.listen(self._take)

    async def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            self._endpoint.clean_up()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, in a task of its own."""
        task = asyncio.current_task()
        assert task is not None
        self._num_connections += 1
        self._connections[task] = None
        try:
            await self._carry((reader, writer), task)
        except asyncio.CancelledError:
            reset(writer)
        finally:
            del self._connections[task]

    async def _carry(self, client: Ends, task: asyncio.Task[None]) -> None:
        try:
            server = await self._target.connect()
        except OSError:
            reset(client[1])
            return
        self._connections[task] = connection = Connection(client, server, self._ways, self._buffer_bytes)
        await connection.run()

    def _cut_now(self) -> None:
        self._num_cuts += 1
        self._break_connections()

    def _break_connections(self) -> tuple[asyncio.Task[None], ...]:
        """Reset all of them; returns the tasks that are going to end."""
        for task, connection in self._connections.items():
            if connection is not None:
                connection.reset()
            task.cancel()
        return tuple(self._connections)

    async def _cut(self) -> None:
        self._num_cuts += 1
        await _ended(self._break_connections())

    async def _end(self) -> None:
        await self._stop_listening()
        await _ended(self._break_connections())


async def _ended(tasks: tuple[asyncio.Task[None], ...]) -> None:
    if tasks:
        await asyncio.wait(tasks)
