"""Deadlines for synchronous streams, for which gRPC has none."""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol


class Waiting(Protocol):
    """Something that waits for an answer."""

    due_at_s: float
    """When the answer is overdue, on the clock of `time.monotonic`; infinite while nothing is waited for."""

    def give_up(self) -> None:
        """Make the waiting end, now."""

    def close(self) -> None:
        """Free what it holds; it asks to be removed in turn."""


class DeadlineWatch:
    """One thread that ends waits whose time is over.

    A wait that begins costs two comparisons: the thread is woken only for a deadline earlier than all others, and with
    one timeout for all steps that is hardly ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiters: set[Waiting] = set()
        self._wakes_at_s = math.inf
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, and with it the client whose waits it ends."""
        return self._is_closed

    def add(self, waiter: Waiting) -> None:
        """Watch over it until it is removed."""
        with self._changed:
            self._waiters.add(waiter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="splitlearn-deadlines", daemon=True)
                self._thread.start()

    def remove(self, waiter: Waiting) -> None:
        """Watch over it no more."""
        with self._changed:
            self._waiters.discard(waiter)

    def begin(self, waiter: Waiting, due_at_s: float) -> None:
        """Note that a wait begins."""
        waiter.due_at_s = due_at_s
        if due_at_s < self._wakes_at_s:
            with self._changed:
                self._changed.notify()

    def close(self) -> None:
        """End the thread, and close all that is still watched over."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            waiters = tuple(self._waiters)
        for waiter in waiters:
            waiter.close()

    def _watch(self) -> None:
        with self._changed:
            while not self._is_closed:
                # Infinite while looking: a wait that begins meanwhile then asks for another look.
                self._wakes_at_s = math.inf
                self._end_overdue(time.monotonic())
                self._wakes_at_s = min((waiter.due_at_s for waiter in self._waiters), default=math.inf)
                self._changed.wait(min(self._wakes_at_s - time.monotonic(), threading.TIMEOUT_MAX))

    def _end_overdue(self, now_s: float) -> None:
        for waiter in self._waiters:
            if waiter.due_at_s <= now_s:
                waiter.due_at_s = math.inf
                waiter.give_up()
