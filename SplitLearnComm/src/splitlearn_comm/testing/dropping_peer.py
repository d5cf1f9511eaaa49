"""A peer that takes connections and never says anything."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from splitlearn_comm.testing.own_loop import OwnLoop


class DroppingPeer:
    """Listens, accepts, reads and throws away: a server that hangs, or is none of ours. It never answers."""

    def __init__(self) -> None:
        self._num_connections = 0
        self._bytes_dropped = 0
        self._loop = OwnLoop("splitlearn-dropping-peer")
        self._port = self._loop.run(self._listen())

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._port}"

    @property
    def num_connections(self) -> int:
        """Connections accepted up to now."""
        return self._num_connections

    @property
    def bytes_dropped(self) -> int:
        """Bytes that came and were thrown away."""
        return self._bytes_dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.run(self._stop_listening())
        self._loop.close()

    async def _listen(self) -> int:
        self._listener = await asyncio.start_server(self._swallow, "127.0.0.1", 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def _stop_listening(self) -> None:
        self._listener.close()

    async def _swallow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        try:
            while data := await reader.read(65536):
                self._bytes_dropped += len(data)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            writer.transport.abort()
