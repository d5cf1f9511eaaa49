"""An engine on a thread of its own: the event loop never waits for a model."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch

from splitlearn_comm.worker import DUE_S
from splitlearn_core.engine import Action, StepResult, TrunkEngine
from splitlearn_manager.runtime.engine_driver import EngineDriver, Waiter, Waiters, not_open, output_of, refuse, tell

T = TypeVar("T")


class _Step(NamedTuple):
    session_id: str
    action: Action
    waiter: Waiter
    asked_s: float
    due_s: float


class _Call(NamedTuple):
    call: Callable[[TrunkEngine], Any]
    waiter: asyncio.Future[Any]


class _Open(NamedTuple):
    session_id: str
    client: str


class _Close(NamedTuple):
    session_id: str


_Job = _Step | _Call | _Open | _Close


class EngineThread(EngineDriver):
    """Takes turns on one thread. A lone step pays one wake-up each way; the results of a turn share the way back.

    The thread begins with the first step or call, and again with the first after a shutdown.

    Args:
        engine: touched by nobody else.
        name: the thread's.
    """

    def __init__(self, engine: TrunkEngine, name: str) -> None:
        super().__init__(engine)
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Put a step in line and wait for its result; raises as `EngineDriver.step` does."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._put(_Step(session_id, action, waiter, time.perf_counter(), DUE_S.get()))
        return output_of(await waiter)

    async def run(self, call: Callable[[TrunkEngine], T]) -> T:
        """Do something with the engine between two turns."""
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(_Call(call, waiter))
        return await waiter

    def open(self, session_id: str, client: str) -> None:
        """Open a session, ahead of the steps that are put in line from now on."""
        self._put(_Open(session_id, client))

    def close(self, session_id: str) -> None:
        """Free a session, if it is open."""
        self._put(_Close(session_id))

    async def shutdown(self) -> None:
        """Let the turn in progress end, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    def _put(self, job: _Job) -> None:
        if self._thread is None:
            # A queue of its own: what is left in an old one belongs to the thread that ended. A daemon: a server that
            # nobody stopped must not keep its process alive.
            self._jobs = SimpleQueue()
            turns = _Turns(self._engine, self._jobs)
            self._thread = threading.Thread(target=turns.take, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)


class _Turns:
    """What runs on the thread."""

    def __init__(self, engine: TrunkEngine, jobs: SimpleQueue[_Job | None]) -> None:
        self._engine = engine
        self._jobs = jobs
        self._waiters = Waiters(engine)

    def take(self) -> None:
        """Take turns until the queue says that it is enough."""
        timeout_s: float | None = None
        while self._take_in(timeout_s):
            _hand_out([(waiter, _cancel, None) for waiter in self._waiters.overdue()])
            turn = self._engine.turn()
            _hand_out([(waiter, tell, result) for waiter, result in self._waiters.ended(turn.results)])
            if turn.batch is not None:
                timeout_s = 0.0
            elif turn.wait_until_s is not None:
                timeout_s = max(0.0, turn.wait_until_s - time.perf_counter())
            else:
                timeout_s = None
            del turn  # until the next one comes its tensors would stay alive
        _hand_out([(waiter, _cancel, None) for waiter in self._waiters.drop_all()])

    def _take_in(self, timeout_s: float | None) -> bool:
        """Wait for a job for so long, then take all there are; return False when that is the last."""
        with contextlib.suppress(Empty):
            job = self._jobs.get_nowait() if timeout_s == 0.0 else self._jobs.get(timeout=timeout_s)
            while job is not None:
                self._do(job)
                job = self._jobs.get_nowait()
            self._cancel_rest()
            return False
        return True

    def _do(self, job: _Job) -> None:
        match job:
            case _Step() | _Call() if job.waiter.cancelled():
                return
            case _Open(session_id, client):
                self._engine.open(session_id, client=client)
            case _Step(session_id, action, waiter, asked_s, due_s):
                if not self._waiters.submit(session_id, action, waiter, asked_s=asked_s, due_s=due_s):
                    _hand_out([(waiter, not_open, None)])
            case _Close(session_id):
                _hand_out([(waiter, not_open, None) for waiter in self._waiters.close(session_id)])
            case _Call(call, waiter):
                try:
                    result = call(self._engine)
                except BaseException as error:
                    _hand_out([(waiter, refuse, error)])
                else:
                    _hand_out([(waiter, _settle, result)])

    def _cancel_rest(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if isinstance(job, _Step | _Call):
                    _hand_out([(job.waiter, _cancel, None)])


def _hand_out(told: list[tuple[asyncio.Future[Any], Callable[..., None], Any]]) -> None:
    """Tell each waiter, on its loop; those of one loop with one wake-up."""
    of_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Callable[..., None], Any]]] = {}
    for item in told:
        of_loop.setdefault(item[0].get_loop(), []).append(item)
    for loop, items in of_loop.items():
        # A loop that was closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell_all, items)


def _tell_all(items: list[tuple[asyncio.Future[Any], Callable[..., None], Any]]) -> None:
    for waiter, how, what in items:
        how(waiter, what)


def _settle(waiter: asyncio.Future[Any], result: Any) -> None:
    if not waiter.cancelled():
        waiter.set_result(result)


def _cancel(waiter: asyncio.Future[Any], _: StepResult | None) -> None:
    waiter.cancel()
