"""One thread that runs calls for an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from splitlearn_comm.contained import contained

T = TypeVar("T")


DUE_S: ContextVar[float] = ContextVar("splitlearn_due_s", default=math.inf)
"""Set around a `run` whose result is of no use from some time on, on the clock of `time.monotonic`: a call that has not
begun by then is dropped, and its waiter cancelled."""


class Turn:
    """When the turn of a step came that had to wait for others; whoever runs it notes that."""

    __slots__ = ("began_s",)

    def __init__(self) -> None:
        self.began_s = 0.0
        """On `time.perf_counter`; 0 while it is not known."""


TURN: ContextVar[Turn | None] = ContextVar("splitlearn_turn", default=None)
"""Set around a step by who wants to know when its turn came."""


def note_turn(began_s: float) -> None:
    """Note when the turn of the step came that is being done, on `time.perf_counter`; 0 where that is not known."""
    turn = TURN.get()
    if turn is not None:
        turn.began_s = began_s


class _Job(NamedTuple):
    call: Callable[[], Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    due_s: float
    turn: Turn | None


class _Outcome(NamedTuple):
    result: Any = None
    error: Exception | None = None


class WorkerThread:
    """Runs calls one after another on one thread, so that an event loop never waits for them.

    What `concurrent.futures` would do, with one queue and one wake-up each way instead of its locks and two futures:
    the hand-off is on the path of every step. The thread begins with the first call, and again with the first after a
    shutdown. A call whose waiter is cancelled before its turn is dropped; one that runs comes to its end.

    Args:
        name: The thread's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call on the thread and wait for its result; raises what the call raised, as `contained` says."""
        if self._thread is None:
            # A daemon: a server that nobody stopped must not keep its process alive.
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(call, answer, loop, DUE_S.get(), TURN.get()))
        return await answer

    async def shutdown(self) -> None:
        """Wait for the call in progress and end the thread; the waiters of those in the queue are cancelled."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        jobs, self._jobs = self._jobs, SimpleQueue()
        with contextlib.suppress(Empty):
            # Not asking whether it is empty first: the thread may take the last job in between.
            while job := jobs.get_nowait():
                job.answer.cancel()
        jobs.put(None)
        await asyncio.to_thread(thread.join)


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while job := jobs.get():
        if job.answer.cancelled():
            continue
        if job.due_s < time.monotonic():
            with contextlib.suppress(RuntimeError):
                job.loop.call_soon_threadsafe(job.answer.cancel)
            continue
        if job.turn is not None:
            job.turn.began_s = time.perf_counter()
        try:
            outcome = _Outcome(job.call())
        except BaseException as error:
            outcome = _Outcome(error=contained(error))
        # A loop that was closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            job.loop.call_soon_threadsafe(_tell, job.answer, outcome)
        # Until the next job comes the last one's tensors would stay alive.
        del job, outcome


def _tell(answer: asyncio.Future[Any], outcome: _Outcome) -> None:
    if answer.cancelled():
        return
    if outcome.error is None:
        answer.set_result(outcome.result)
    else:
        answer.set_exception(outcome.error)
