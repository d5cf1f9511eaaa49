"""Running a model's calls where they arrive, in a process that has nothing else to do."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Worker(Protocol):
    """Runs calls one after another: Comm's `WorkerThread`, or an `InlineWorker`."""

    def run(self, call: Callable[[], T]) -> Awaitable[T]:
        """Run a call and wait for its result; raises what the call raised."""

    def shutdown(self) -> Awaitable[None]:
        """Let the call in progress end, and start no other."""


class InlineWorker:
    """Runs each call at once, on the event loop that asks for it: no thread has to be woken, and no loop again."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run the call."""
        return call()

    async def shutdown(self) -> None:
        """Do nothing: no call is in progress."""
