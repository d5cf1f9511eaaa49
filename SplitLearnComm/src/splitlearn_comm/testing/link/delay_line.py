"""Bytes that are underway on one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes and when they arrive; no bytes stand for the end of the stream."""

    data: bytes
    arrives_at_s: float
    """On the clock of the event loop."""


class DelayLine:
    """Pieces come out in the order they went in, none before its time.

    Args:
        capacity_bytes: How much may be underway; `put` waits for room. One piece always fits.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._pieces: deque[Piece] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Condition()

    @property
    def held_bytes(self) -> int:
        """How much is underway."""
        return self._held_bytes

    async def put(self, piece: Piece) -> None:
        """Send a piece on its way."""
        num_bytes = len(piece.data)
        async with self._changed:
            await self._changed.wait_for(lambda: not self._pieces or self._has_room(num_bytes))
            self._pieces.append(piece)
            self._held_bytes += num_bytes
            self._changed.notify_all()

    async def get(self) -> Piece:
        """The next piece, once it has arrived. For one task."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._pieces))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._pieces[0].arrives_at_s - loop.time())
        async with self._changed:
            piece = self._pieces.popleft()
            self._held_bytes -= len(piece.data)
            self._changed.notify_all()
        return piece

    def _has_room(self, num_bytes: int) -> bool:
        return self._held_bytes + num_bytes <= self._capacity_bytes
