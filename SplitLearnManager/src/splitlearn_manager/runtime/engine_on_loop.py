"""An engine on the event loop itself, in a process that has nothing else to do."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from splitlearn_comm.contained import called
from splitlearn_comm.worker import DUE_S
from splitlearn_core.engine import Action, TrunkEngine
from splitlearn_manager.runtime.engine_driver import ASKED_S, EngineDriver, Waiter, Waiters, not_open, output_of, tell

T = TypeVar("T")


class EngineOnLoop(EngineDriver):
    """Takes turns between the messages that arrive: no thread has to be woken, and no loop again.

    Args:
        engine: touched by nobody else.
    """

    def __init__(self, engine: TrunkEngine) -> None:
        super().__init__(engine)
        self._waiters = Waiters(engine)
        self._next: asyncio.TimerHandle | asyncio.Handle | None = None

    async def step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Put a step in line and wait for its result; raises as `EngineDriver.step` does."""
        loop = asyncio.get_running_loop()
        waiter: Waiter = loop.create_future()
        if not self._waiters.submit(session_id, action, waiter, asked_s=ASKED_S.get(), due_s=DUE_S.get()):
            not_open(waiter)
        elif self._next is None or isinstance(self._next, asyncio.TimerHandle):
            self._soon(loop)
        return output_of(await waiter)

    async def run(self, call: Callable[[TrunkEngine], T]) -> T:
        """Do something with the engine."""
        return called(lambda: call(self._engine))

    def open(self, session_id: str, client: str) -> None:
        """Open a session."""
        self._engine.open(session_id, client=client)

    def close(self, session_id: str) -> None:
        """Free a session, if it is open."""
        for waiter in self._waiters.close(session_id):
            not_open(waiter)

    async def shutdown(self) -> None:
        """Take no turn any more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        for waiter in self._waiters.drop_all():
            waiter.cancel()

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._next is not None:
            self._next.cancel()
        # By way of another call: what has arrived by now is read in between, and joins the turn.
        self._next = loop.call_soon(self._in_a_moment, loop)

    def _in_a_moment(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next = loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next = None
        for waiter in self._waiters.overdue():
            waiter.cancel()
        turn = self._engine.turn()
        for waiter, result in self._waiters.ended(turn.results):
            tell(waiter, result)
        if turn.batch is not None:
            self._soon(loop)
        elif turn.wait_until_s is not None:
            # The engine's clock is another than the loop's.
            self._next = loop.call_later(max(0.0, turn.wait_until_s - time.perf_counter()), self._turn, loop)
