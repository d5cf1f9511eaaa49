"""What is raised, and who is woken, where a client or a session was closed while it was used."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

from splitlearn_comm.errors import ClientClosedError


def closed_here() -> ClientClosedError:
    """The error of a call, or a step, that meets a client or a session closed in this process."""
    return ClientClosedError(
        "the client or the session was closed here, by this program: nothing more is sent and no answer is waited for; "
        "make another client, or open another session, and close it when its work is done"
    )


def is_cancelled_by_its_owner() -> bool:
    """Whether the task that runs was asked to end; else a `CancelledError` in it says that a call it awaits was."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _never() -> bool:
    return False


class Closing:
    """The pauses of a client's threads, which end when it is closed, or the session that pauses."""

    def __init__(self) -> None:
        self._is_closed = False
        self._changed = threading.Condition()

    def close(self) -> None:
        """End all pauses, those to come too: the client is closed."""
        self._is_closed = True
        self.wake()

    def wake(self) -> None:
        """Have all who pause look whether what they pause for is over."""
        with self._changed:
            self._changed.notify_all()

    def pause(self, seconds: float, is_over: Callable[[], bool] = _never) -> None:
        """Do nothing for a while. Raises `ClientClosedError` as soon as the client is closed, or that is over."""
        with self._changed:
            if self._changed.wait_for(lambda: self._is_closed or is_over(), min(seconds, threading.TIMEOUT_MAX)):
                raise closed_here()


class AsyncClosing:
    """`Closing`, for the tasks of an asyncio client."""

    def __init__(self) -> None:
        self._is_closed = False
        self._changed = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed."""
        return self._is_closed

    def close(self) -> None:
        """End all pauses, those to come too: the client is closed."""
        self._is_closed = True
        self.wake()

    def wake(self) -> None:
        """Have all who pause look whether what they pause for is over."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def pause(self, seconds: float, is_over: Callable[[], bool] = _never) -> None:
        """Do nothing for a while. Raises `ClientClosedError` as soon as the client is closed, or that is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self._is_closed or is_over()):
                    await self._changed.wait()
        if self._is_closed or is_over():
            raise closed_here()
