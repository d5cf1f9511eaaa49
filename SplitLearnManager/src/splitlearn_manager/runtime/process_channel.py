"""A stream of frames on the running event loop."""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from splitlearn_manager.runtime.process_frames import Frame, FrameReader, Kind, header_of

_JOINED_BYTES = 1 << 16
"""Up to here a payload is copied behind its header: one system call instead of two."""


class Channel(asyncio.Protocol):
    """Sends frames, and hands over those that come.

    Args:
        on_frame: called with each frame, in order.
        on_lost: called once, when the other end is gone.
    """

    def __init__(self, on_frame: Callable[[Frame], object], on_lost: Callable[[], object]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand the frames over."""
        for frame in self._reader.feed(data):
            self._on_frame(frame)

    def connection_lost(self, error: Exception | None) -> None:
        """Say so."""
        self._transport = None
        self._on_lost()

    def send(self, kind: Kind, payload: bytes = b"", *, call: int = 0, session: int = 0, began_s: float = 0.0) -> None:
        """Send a frame; one that can no longer arrive is dropped."""
        if self._transport is None:
            return
        header = header_of(kind, len(payload), call, session, time.perf_counter(), began_s)
        if len(payload) <= _JOINED_BYTES:
            self._transport.write(header + payload)
        else:
            self._transport.write(header)
            self._transport.write(payload)

    def close(self) -> None:
        """Hang up. May be called twice."""
        if self._transport is not None:
            self._transport.abort()
