"""A TCP proxy on loopback that counts the bytes of each direction, HTTP/2 and all."""

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Self

CHUNK_BYTES = 1 << 16


@dataclass
class Traffic:
    """Bytes that passed, as the sockets saw them."""

    sent: int = 0
    """From the client to the server."""
    received: int = 0
    """From the server to the client."""


class CountingProxy:
    """Forwards connections to a server; used with `with`, it runs on an event loop in a thread of its own."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.traffic = Traffic()
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        with contextlib.suppress(asyncio.CancelledError):  # the proxy was closed
            await asyncio.gather(
                self._pump(reader, server_writer, "sent"), self._pump(server_reader, writer, "received")
            )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                setattr(self.traffic, direction, getattr(self.traffic, direction) + len(data))
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
