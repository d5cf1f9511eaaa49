"""Clients that do all that clients do, and check every answer to the bit: the load of the soak.

Sums of small integers are exact in float32, so what is right is known. Each activity makes a client of its own:
descriptors that stay behind then show. As a program (`python -m tests.support.mixed_load ADDRESS`) it makes a load each
time a line of `SECONDS SEED` comes, and answers with a line of JSON: how often it did what.
"""

import asyncio
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from splitlearn_comm import AsyncComputeClient, GRPCComputeClient, InvalidRequestError, SequenceTooLongError
from splitlearn_comm.testing import Cut, Direction, Drop, Duplicate, FaultyRelay, LinkEmulator

HIDDEN = 4
MUCH = (512, 32)
"""Rows and tokens of sessions that keep 256 KiB at the host, and as much as the last answer: enough to be missed."""
LARGE = (20_000, 12)
"""3.8 MB of float32: several pieces."""
FAULTS = (Drop(), Cut(), Duplicate())

Activity = Callable[[str, random.Random], None]
AsyncActivity = Callable[[str, random.Random], Awaitable[None]]


class Twin:
    """What the cache of a session has to be. Draws what the session is to do next, and checks its answers."""

    def __init__(self, draw: random.Random, batch: int = 2, num_tokens: int = 3) -> None:
        self._draw = draw
        self._inputs_BPH = torch.empty(batch, 0, HIDDEN)
        self._num_first = num_tokens
        self._expected: torch.Tensor | None = None

    def next_step(self) -> tuple[str, Any]:
        """The method of the session to call next, and its argument."""
        batch, past = self._inputs_BPH.shape[:2]
        kind = self._draw.randrange(4) if past else 3
        self._expected = None
        if kind == 0 and past > 2:
            self._inputs_BPH = self._inputs_BPH[:, :-1]
            return "crop", 1
        if kind == 1:
            rows = [self._draw.randrange(batch) for _ in range(batch)]
            self._inputs_BPH = self._inputs_BPH[rows]
            return "reorder", rows
        return "step", self._append(1 if past else self._num_first)

    def check(self, answer: torch.Tensor | None) -> None:
        """Raise `AssertionError` if it is not what the session has to answer."""
        if answer is None or self._expected is None:
            assert answer is self._expected, f"expected {self._expected}, came {answer}"
        else:
            assert torch.equal(answer, self._expected)

    def _append(self, num_tokens: int) -> torch.Tensor:
        hidden_BTH = integers(self._draw, self._inputs_BPH.shape[0], num_tokens)
        self._inputs_BPH = torch.cat((self._inputs_BPH, hidden_BTH), 1)
        self._expected = self._inputs_BPH.cumsum(1)[:, -num_tokens:]
        return hidden_BTH


def integers(draw: random.Random, batch: int, num_tokens: int) -> torch.Tensor:
    """Draw [B, T, H] of small integers, float32."""
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    return torch.randint(-9, 10, (batch, num_tokens, HIDDEN), generator=generator).float()


def step(session: Any, twin: Twin, count: int = 1) -> None:
    """Do steps and check them."""
    for _ in range(count):
        name, argument = twin.next_step()
        twin.check(getattr(session, name)(argument))


async def step_async(session: Any, twin: Twin, count: int = 1) -> None:
    """Do steps and check them."""
    for _ in range(count):
        name, argument = twin.next_step()
        twin.check(await getattr(session, name)(argument))


def wander(address: str, draw: random.Random) -> None:
    with GRPCComputeClient(address) as client, client.session() as session:
        step(session, Twin(draw), 10)


def interleave(address: str, draw: random.Random) -> None:
    with GRPCComputeClient(address) as client:
        pairs = [(client.session(), Twin(draw)) for _ in range(3)]
        for _ in range(5):
            for session, twin in pairs:
                step(session, twin)
        for session, _ in pairs:
            session.close()


def keep_much(address: str, draw: random.Random) -> None:
    with GRPCComputeClient(address) as client, client.session() as session:
        step(session, Twin(draw, *MUCH))


def abandon(address: str, draw: random.Random) -> None:
    with GRPCComputeClient(address) as client:
        step(client.session(), Twin(draw, *MUCH))


def send_large(address: str, draw: random.Random) -> None:
    with GRPCComputeClient(address) as client, client.session() as session:
        step(session, Twin(draw, *LARGE))


def compute(address: str, draw: random.Random) -> None:
    inputs = integers(draw, 3, 8)
    with GRPCComputeClient(address) as client:
        first, cache = client.compute(inputs[:, :5], use_cache=True)
        second = client.compute(inputs[:, 5:], past_key_values=cache)
    assert torch.equal(torch.cat((first, second), 1), inputs.cumsum(1))


def be_refused(address: str, draw: random.Random) -> None:
    with GRPCComputeClient(address) as client, client.session() as session:
        twin = Twin(draw)
        step(session, twin, 2)
        with pytest.raises(InvalidRequestError):
            session.step(torch.ones(2, 1, HIDDEN + 1))
        with pytest.raises(SequenceTooLongError):
            client.compute(torch.ones(1, 65, HIDDEN))
        step(session, twin, 2)


def lose_connections(address: str, draw: random.Random) -> None:
    with LinkEmulator(address) as link, GRPCComputeClient(link.address) as client, client.session() as session:
        twin = Twin(draw)
        for _ in range(2):
            step(session, twin, 2)
            link.cut()
        step(session, twin, 2)


def meet_faults(address: str, draw: random.Random) -> None:
    # Behind the opening: what happens to that is tested elsewhere, message by message.
    schedule = {(draw.choice(list(Direction)), draw.randrange(1, 8)): draw.choice(FAULTS) for _ in range(2)}
    with (
        FaultyRelay(address, schedule) as relay,
        GRPCComputeClient(relay.address) as client,
        client.session() as session,
    ):
        step(session, Twin(draw), 8)


async def wander_async(address: str, draw: random.Random) -> None:
    async with AsyncComputeClient(address) as client, client.session() as session:
        await step_async(session, Twin(draw), 10)


async def interleave_async(address: str, draw: random.Random) -> None:
    async with AsyncComputeClient(address) as client:

        async def one() -> None:
            async with client.session() as session:
                await step_async(session, Twin(draw), 5)

        await asyncio.gather(*(one() for _ in range(3)))


async def abandon_async(address: str, draw: random.Random) -> None:
    async with AsyncComputeClient(address) as client:
        session = client.session()
        await step_async(session, Twin(draw, *MUCH))


async def compute_async(address: str, draw: random.Random) -> None:
    inputs = integers(draw, 3, 8)
    async with AsyncComputeClient(address) as client:
        outputs = await asyncio.gather(*(client.compute(inputs) for _ in range(4)))
        with pytest.raises(InvalidRequestError):
            await client.compute(inputs[:, :, 1:])
    assert all(torch.equal(output, inputs.cumsum(1)) for output in outputs)


ACTIVITIES: tuple[Activity, ...] = (
    wander,
    interleave,
    keep_much,
    abandon,
    send_large,
    compute,
    be_refused,
    lose_connections,
    meet_faults,
)
ASYNC_ACTIVITIES: tuple[AsyncActivity, ...] = (wander_async, interleave_async, abandon_async, compute_async)


def load(address: str, seconds: float, seed: int) -> Counter[str]:
    """Do one thing after another, as drawn; returns how often what was done. Raises what an activity raises."""
    draw, done = random.Random(seed), Counter[str]()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        activity = draw.choice(ACTIVITIES)
        activity(address, draw)
        done[activity.__name__] += 1
    return done


async def load_async(address: str, seconds: float, seed: int) -> Counter[str]:
    """`load`, of asyncio clients."""
    draw, done = random.Random(seed), Counter[str]()
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        activity = draw.choice(ASYNC_ACTIVITIES)
        await activity(address, draw)
        done[activity.__name__] += 1
    return done


async def load_of_all_kinds(address: str, seconds: float, seed: int) -> Counter[str]:
    """Two asyncio clients on this loop, and a synchronous one in a thread, at the same time."""
    with ThreadPoolExecutor(1) as pool:
        thread = asyncio.get_running_loop().run_in_executor(pool, load, address, seconds, seed)
        parts = await asyncio.gather(
            load_async(address, seconds, seed + 1), load_async(address, seconds, seed + 2), thread
        )
    return sum(parts, Counter[str]())


def hang_up() -> None:
    """Close the connections of this process's clients: asyncio's live until nobody holds a call of theirs any more."""
    gc.collect()


def main(address: str) -> None:
    """Make a load for each line of standard input."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        seconds, seed = line.split()
        done = asyncio.run(load_of_all_kinds(address, float(seconds), int(seed)))
        hang_up()
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
