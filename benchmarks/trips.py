"""Batches of round trips: ours and those of a raw echo of as many bytes, with clients of the same kind."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from benchmarks.raw import async_echo_trip, echo_trip
from splitlearn_comm import AsyncComputeClient, GRPCComputeClient

T = TypeVar("T")

Batch = Callable[[int], list[float]]
"""Makes so many round trips, one after the other; returns the seconds of each, less what the server computed."""
Opener = Callable[[str, str, torch.Tensor], AbstractContextManager[tuple[Batch, Batch]]]
"""Connects to our server and to the raw one, to send them a tensor or its bytes; gives the batches of each."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What is around the round trips."""

    before: Callable[[], object] = lambda: None
    """Called before each message; its time does not count."""
    server_s: Callable[[Any], float] = lambda answer: 0.0
    """Reads from an answer, a tensor or bytes, how long the server computed."""


BACK_TO_BACK = Pace()


def batches(trip: Callable[[], object], pace: Pace = BACK_TO_BACK) -> Batch:
    """Return the batches of a trip."""

    def run(count: int) -> list[float]:
        times = []
        for _ in range(count):
            pace.before()
            started = time.perf_counter()
            answer = trip()
            times.append(time.perf_counter() - started - pace.server_s(answer))
        return times

    return run


def async_batches(runner: asyncio.Runner, trip: Callable[[], Awaitable[object]], pace: Pace) -> Batch:
    """Return the batches of a trip that is awaited."""

    async def run(count: int) -> list[float]:
        times = []
        for _ in range(count):
            pace.before()
            started = time.perf_counter()
            answer = await trip()
            times.append(time.perf_counter() - started - pace.server_s(answer))
        return times

    return lambda count: runner.run(run(count))


@contextmanager
def our_trip(address: str, tensor: torch.Tensor) -> Iterator[Callable[[], torch.Tensor]]:
    """Yield the trip of our synchronous client: a step of a session."""
    with GRPCComputeClient(address) as client, client.session() as session:
        assert session.step(tensor).shape == tensor.shape
        yield lambda: session.step(tensor)


@asynccontextmanager
async def our_async_trip(address: str, tensor: torch.Tensor) -> AsyncIterator[Callable[[], Awaitable[torch.Tensor]]]:
    """Yield the trip of our asyncio client."""
    async with AsyncComputeClient(address) as client, client.session() as session:
        assert (await session.step(tensor)).shape == tensor.shape
        yield lambda: session.step(tensor)


@contextmanager
def entered(runner: asyncio.Runner, resource: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Hold what is opened and closed on a loop that runs only now and then."""
    value = runner.run(_awaited(resource.__aenter__()))
    try:
        yield value
    finally:
        runner.run(_awaited(resource.__aexit__(None, None, None)))


async def _awaited(work: Awaitable[T]) -> T:
    return await work


@contextmanager
def clients(pace: Pace = BACK_TO_BACK) -> Iterator[dict[str, Opener]]:
    """Yield both kinds of clients by name. Use the synchronous ones first: nothing of asyncio has begun then.

    All asyncio ones share a loop: gRPC wakes every loop that it ever saw for every event.
    """

    @contextmanager
    def synchronous(ours: str, raw: str, tensor: torch.Tensor) -> Iterator[tuple[Batch, Batch]]:
        with our_trip(ours, tensor) as our, echo_trip(raw, bytes_of(tensor)) as echo:
            yield batches(our, pace), batches(echo, pace)

    @contextmanager
    def asynchronous(ours: str, raw: str, tensor: torch.Tensor) -> Iterator[tuple[Batch, Batch]]:
        with (
            entered(runner, our_async_trip(ours, tensor)) as our,
            entered(runner, async_echo_trip(raw, bytes_of(tensor))) as echo,
        ):
            yield async_batches(runner, our, pace), async_batches(runner, echo, pace)

    with asyncio.Runner() as runner:
        yield {"synchronous": synchronous, "asyncio": asynchronous}


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the tensor's elements as a raw peer sends them."""
    data: bytes = tensor.numpy().tobytes()
    return data
