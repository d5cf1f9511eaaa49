"""Asking a server to stop: from any thread, and from the handler of a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from queue import SimpleQueue
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class StopAsked:
    """Whether a server was asked to stop; one for each time it starts.

    The handler of a signal runs between any two lines of the thread that waits. It must not need a lock that the thread
    may hold just then, as that of a `threading.Event` would be; `SimpleQueue.put` is made for that.

    Args:
        loop: The server's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked: SimpleQueue[None] = SimpleQueue()
        self._is_asked = asyncio.Event()

    def ask(self) -> None:
        """Ask the server to stop."""
        self._asked.put(None)
        self._loop.call_soon_threadsafe(self._is_asked.set)

    def wait(self) -> None:
        """Wait until somebody asks; not on the loop."""
        self._asked.get()

    async def unless_asked(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do some work; if somebody asks meanwhile it is cancelled, and this is None once it has cleaned up."""
        doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(self._is_asked.wait())
        try:
            await asyncio.wait([doing, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            # One that is done stays so.
            doing.cancel()
        await asyncio.wait([doing])
        return None if doing.cancelled() else doing.result()


@contextlib.contextmanager
def asking_on_signals(asked: StopAsked) -> Iterator[None]:
    """Ask on SIGINT and SIGTERM, where this thread may handle signals; the old handlers come back after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.ask()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
