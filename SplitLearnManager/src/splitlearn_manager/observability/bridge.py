"""From a thread that collects metrics to the event loop on which the models live."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

ASK_TIMEOUT_S = 3.0
"""How long to wait for an answer; Prometheus waits ten seconds for the page."""


class LoopBridge:
    """Asks for something on an event loop, and waits for it in another thread.

    Args:
        loop: runs in a thread of its own.
        timeout_s: how long to wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float = ASK_TIMEOUT_S) -> None:
        self._loop = loop
        self._timeout_s = timeout_s

    def ask(self, work: Callable[[], Coroutine[Any, Any, T]], otherwise: T) -> T:
        """Return what a coroutine returns, or something else where there is no answer in time.

        Args:
            work: makes the coroutine.
            otherwise: what to return then.
        """
        asked = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return asked.result(self._timeout_s)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            asked.cancel()
            return otherwise
