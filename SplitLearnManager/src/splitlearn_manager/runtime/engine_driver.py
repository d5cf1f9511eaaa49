"""Who takes the turns of an engine: the port, and the book of those who wait for a step's result."""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import torch

from splitlearn_comm.contained import contained
from splitlearn_comm.worker import note_turn
from splitlearn_core.engine import Action, StepResult, TrunkEngine

T = TypeVar("T")
Waiter = asyncio.Future[StepResult]
ASKED_S: ContextVar[float | None] = ContextVar("splitlearn_asked", default=None)
"""When the call that is being served was sent, on `time.perf_counter`, which all processes of a machine share; None
where it was not sent."""


class EngineDriver(ABC):
    """Takes an engine's turns, for an event loop that hands it steps.

    Args:
        engine: touched by nobody else.
    """

    def __init__(self, engine: TrunkEngine) -> None:
        self._engine = engine

    @abstractmethod
    async def step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Put a step of an open session in line and wait for its result.

        Where `splitlearn_comm.worker.DUE_S` is set, a step that has not begun by then is taken out of the line, and its
        waiter cancelled.

        Raises:
            LookupError: the session is not open, or was closed before the step's turn came.
            Exception: what the step failed with; the session is over then.
        """

    @abstractmethod
    async def run(self, call: Callable[[TrunkEngine], T]) -> T:
        """Do something with the engine between two turns; raises what the call raised."""

    @abstractmethod
    def open(self, session_id: str, client: str) -> None:
        """Open a session, ahead of the steps that are put in line from now on; waits for nothing."""

    @abstractmethod
    def close(self, session_id: str) -> None:
        """Free a session, if it is open; waits for nothing.

        Whoever waits for steps of it that have not begun gets a `LookupError`.
        """

    @abstractmethod
    async def shutdown(self) -> None:
        """Let the turn in progress end, and take no other; those who wait are cancelled."""


class Waiters:
    """Who waits for which ticket of an engine, and until when."""

    def __init__(self, engine: TrunkEngine) -> None:
        self._engine = engine
        self._waiters: dict[int, Waiter] = {}
        self._due: dict[int, tuple[float, str]] = {}

    def submit(
        self, session_id: str, action: Action, waiter: Waiter, *, asked_s: float | None = None, due_s: float = math.inf
    ) -> bool:
        """Put a step in line that was asked for then, and is of use until then; return False if no session is open."""
        if session_id not in self._engine:
            return False
        ticket = self._engine.submit(session_id, action, asked_s)
        self._waiters[ticket] = waiter
        if due_s != math.inf:
            self._due[ticket] = due_s, session_id
        return True

    def overdue(self) -> list[Waiter]:
        """Take the steps out of the line that nobody waits for any more and that have not begun; return whose."""
        if not self._due:
            return []
        now_s = time.monotonic()
        late = [(ticket, session_id) for ticket, (due_s, session_id) in self._due.items() if due_s < now_s]
        for ticket, _ in late:
            del self._due[ticket]
        return [self._waiters.pop(ticket) for ticket, session_id in late if self._engine.withdraw(ticket, session_id)]

    def ended(self, results: tuple[StepResult, ...]) -> list[tuple[Waiter, StepResult]]:
        """Return the results of a turn with those who wait for them."""
        if self._due:
            for result in results:
                self._due.pop(result.ticket, None)
        return [(self._waiters.pop(result.ticket), result) for result in results if result.ticket in self._waiters]

    def close(self, session_id: str) -> list[Waiter]:
        """Free a session; return who waits for steps of it that will not run."""
        tickets = self._engine.close(session_id)
        return [self._waiters.pop(ticket) for ticket in tickets if ticket in self._waiters]

    def drop_all(self) -> list[Waiter]:
        """Forget all; return who waits."""
        waiters, self._waiters = list(self._waiters.values()), {}
        return waiters


def not_open(waiter: Waiter, _: object = None) -> None:
    """Tell who waits that the session is not open; on the waiter's own loop."""
    refuse(waiter, LookupError("the session is not open"))


def tell(waiter: Waiter, result: StepResult) -> None:
    """Hand a result to who waits for it; on the waiter's own loop."""
    if waiter.cancelled():
        return
    waiter.set_result(result)


def output_of(result: StepResult) -> torch.Tensor | None:
    """Return what a step gave, and note when its turn came; raises what it failed with."""
    note_turn(result.began_s)
    if result.error is not None:
        raise contained(result.error)
    return result.output_BTH


def refuse(waiter: asyncio.Future[T], error: BaseException) -> None:
    """Hand an error to who waits; on the waiter's own loop."""
    if not waiter.cancelled():
        waiter.set_exception(contained(error))
