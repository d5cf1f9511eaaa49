"""Addresses, as gRPC writes them: `host:port`, `[::1]:port`, `unix:/path`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_READ_AHEAD_BYTES = 64 * 1024


class Endpoint(ABC):
    """A place to listen at or connect to."""

    @abstractmethod
    async def connect(self) -> Ends:
        """Connect to it. Raises `OSError`."""

    @abstractmethod
    async def listen(self, accept: Accept) -> tuple[asyncio.Server, Endpoint]:
        """Listen at it; returns where exactly, too: at port 0 any that is free is taken. Raises `OSError`."""

    def clean_up(self) -> None:
        """Remove what listening has left behind."""
        return


@dataclass(frozen=True)
class TcpEndpoint(Endpoint):
    """A port of a machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def connect(self) -> Ends:
        """Connect to the port."""
        return await asyncio.open_connection(self.host, self.port, limit=_READ_AHEAD_BYTES)

    async def listen(self, accept: Accept) -> tuple[asyncio.Server, Endpoint]:
        """Listen at the port."""
        server = await asyncio.start_server(accept, self.host, self.port, limit=_READ_AHEAD_BYTES)
        return server, replace(self, port=server.sockets[0].getsockname()[1])


@dataclass(frozen=True)
class UnixEndpoint(Endpoint):
    """A Unix domain socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    async def connect(self) -> Ends:
        """Connect to the socket."""
        return await asyncio.open_unix_connection(self.path, limit=_READ_AHEAD_BYTES)

    async def listen(self, accept: Accept) -> tuple[asyncio.Server, Endpoint]:
        """Make the socket and listen at it."""
        return await asyncio.start_unix_server(accept, self.path, limit=_READ_AHEAD_BYTES), self

    def clean_up(self) -> None:
        """Remove the socket's file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def endpoint_of(address: str) -> Endpoint:
    """The endpoint at an address. Raises `ValueError` if it is none."""
    if address.startswith("unix:"):
        return UnixEndpoint(address.removeprefix("unix:").removeprefix("//"))
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"expected an address like localhost:50051, [::1]:50051 or unix:/path, came {address!r}")
    return TcpEndpoint(host.strip("[]"), int(port))
