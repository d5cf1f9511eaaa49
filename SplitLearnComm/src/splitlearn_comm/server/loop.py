"""The event loop all servers of this process run on, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

logger = logging.getLogger("splitlearn_comm.server")
T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a daemon thread for as long as the process lives."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="splitlearn-server", daemon=True)
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; for `asyncio.run_coroutine_threadsafe`."""
        return self._loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it; it is cancelled if the wait is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _run(self) -> None:
        """Run until the loop is stopped: what is not a host's (an interceptor, a callback) may ask for the end of the
        process too, and asyncio gives up on that."""
        while True:
            try:
                self._loop.run_forever()
            except BaseException:
                logger.exception("something on the event loop of the servers asked for its end; it goes on")
            else:
                return


def server_loop() -> LoopThread:
    """The one loop for servers: gRPC wakes every loop that uses it for every event, so one is best."""
    with _making:  # two threads that start their first servers at once would get one each
        return _the_loop()


_making = threading.Lock()


@cache
def _the_loop() -> LoopThread:
    return LoopThread()
