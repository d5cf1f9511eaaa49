"""Every fault at every message boundary of a session of forty steps: the outputs are as without it, to the bit.

A tenth of them is tried in each run of the suite, the rest in `make faults`.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    DeadlineExceededError,
    GRPCComputeClient,
    GRPCComputeServer,
)
from splitlearn_comm.client import AsyncClientSession, ClientSession, FixedDelay
from splitlearn_comm.messages import Action, Crop, Forward, Reorder, StartRecording
from splitlearn_comm.testing import (
    Cut,
    Delay,
    Direction,
    Drop,
    Duplicate,
    FaultyRelay,
    LinkEmulator,
    RunningSumHost,
    eventually,
)
from splitlearn_comm.testing.faults import Fault

pytestmark = pytest.mark.slow

NUM_STEPS = 40
OPEN, CLOSE = 0, NUM_STEPS + 1
TENTH = (OPEN, 1, 22, CLOSE)
CLOSE_MAY_BE_LOST = (
    (Direction.TO_SERVER, CLOSE, Drop()),
    (Direction.TO_CLIENT, NUM_STEPS, Cut()),
)
"""Nobody connects again only to say goodbye; the server frees such a session when its time is over."""
SOON = FixedDelay(0.02, max_attempts=50)
"""gRPC itself pauses for a tenth of a second when it could not connect."""


TOO_LATE_S = {Direction.TO_SERVER: 0.1, Direction.TO_CLIENT: 1.5}
"""A step that never reaches the server needs no time; one whose answer is held back must be done within it."""


def _actions() -> list[Action]:
    """A prompt of five tokens, then steps of one to three, with rows chosen and tokens forgotten in between."""
    generator = torch.Generator().manual_seed(0)
    actions: list[Action] = []
    for number in range(NUM_STEPS):
        num_tokens = 5 if number == 0 else 1 + number % 3
        forward = Forward(torch.randn(2, num_tokens, 4, generator=generator))
        special: dict[int, Action] = {3: StartRecording(), 21: Reorder((1, 0)), 30: Reorder((0, 0))}
        actions.append(special.get(number, Crop(2) if number % 6 == 5 else forward))
    return actions


ACTIONS = _actions()


@dataclass(frozen=True)
class Outcome:
    """What a client saw, step by step."""

    outputs: list[torch.Tensor | None]
    positions: list[int]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcome) or self.positions != other.positions:
            return False
        return all(
            ours is theirs if ours is None or theirs is None else torch.equal(ours, theirs)
            for ours, theirs in zip(self.outputs, other.outputs, strict=True)
        )


def do(session: ClientSession, action: Action, timeout_s: float | None = None) -> torch.Tensor | None:
    match action:
        case Forward(hidden):
            return session.step(hidden, timeout_s=timeout_s)
        case Reorder(indices):
            session.reorder(indices, timeout_s=timeout_s)
        case Crop(num_tokens):
            session.crop(num_tokens, timeout_s=timeout_s)
        case StartRecording():
            session.start_recording(timeout_s=timeout_s)
    return None


async def do_async(session: AsyncClientSession, action: Action, timeout_s: float | None = None) -> torch.Tensor | None:
    match action:
        case Forward(hidden):
            return await session.step(hidden, timeout_s=timeout_s)
        case Reorder(indices):
            await session.reorder(indices, timeout_s=timeout_s)
        case Crop(num_tokens):
            await session.crop(num_tokens, timeout_s=timeout_s)
        case StartRecording():
            await session.start_recording(timeout_s=timeout_s)
    return None


def run(address: str) -> Outcome:
    """The whole session, with a synchronous client."""
    outcome = Outcome([], [])
    with GRPCComputeClient(address, retry=SOON) as client, client.session() as session:
        for action in ACTIONS:
            outcome.outputs.append(do(session, action))
            outcome.positions.append(session.position)
    return outcome


def run_async(address: str) -> Outcome:
    """The whole session, with an asyncio client."""

    async def run() -> Outcome:
        outcome = Outcome([], [])
        async with AsyncComputeClient(address, retry=SOON) as client, client.session() as session:
            for action in ACTIONS:
                outcome.outputs.append(await do_async(session, action))
                outcome.positions.append(session.position)
        return outcome

    return asyncio.run(run())


CLIENTS = {"synchronous": run, "asyncio": run_async}


@pytest.fixture(scope="module")
def expected() -> Outcome:
    """What comes without faults, and without a network: the running sum of what is in the cache."""
    positions: list[int] = []
    outputs: list[torch.Tensor | None] = []
    cache = torch.zeros(2, 0, 4)
    for action in ACTIONS:
        output = None
        match action:
            case Forward(hidden):
                cache = torch.cat((cache, hidden), dim=1)
                output = cache.cumsum(1)[:, -hidden.shape[1] :]
            case Reorder(indices):
                cache = cache[list(indices)]
            case Crop(num_tokens):
                cache = cache[:, : cache.shape[1] - num_tokens]
        outputs.append(output)
        positions.append(cache.shape[1])
    return Outcome(outputs, positions)


@pytest.fixture
def server() -> Iterator[GRPCComputeServer]:
    with GRPCComputeServer(RunningSumHost(max_positions=128), port=0) as server:
        yield server


def cases(faults: Sequence[Fault], boundaries: Sequence[int]) -> list[object]:
    """Client, direction, boundary and fault, each with each; but for a tenth of the boundaries with the mark."""
    return [
        pytest.param(
            client,
            direction,
            boundary,
            fault,
            id=f"{client}-{type(fault).__name__.lower()}-{boundary}-{direction.name.lower()}",
            marks=[] if boundary in TENTH else [pytest.mark.faults],
        )
        for fault in faults
        for boundary in boundaries
        for direction in Direction
        for client in CLIENTS
    ]


@pytest.mark.parametrize("client", CLIENTS)
def test_without_faults(client: str, server: GRPCComputeServer, expected: Outcome) -> None:
    with FaultyRelay(server.address, {}) as relay:
        assert CLIENTS[client](relay.address) == expected
        assert relay.statistics().requests == NUM_STEPS + 2


@pytest.mark.parametrize(
    ("client", "direction", "boundary", "fault"),
    cases((Drop(), Cut(), Duplicate(), Delay(0.01)), range(OPEN, CLOSE + 1)),
)
def test_a_fault_changes_nothing(
    client: str, direction: Direction, boundary: int, fault: Fault, server: GRPCComputeServer, expected: Outcome
) -> None:
    with FaultyRelay(server.address, {(direction, boundary): fault}) as relay:
        assert CLIENTS[client](relay.address) == expected
        made = relay.statistics()
        assert made.dropped + made.cut + made.duplicated + made.delayed == 1
    statistics = server.statistics()
    assert (statistics.steps, statistics.sessions_opened) == (NUM_STEPS, 1)
    if (direction, boundary, fault) not in CLOSE_MAY_BE_LOST:
        eventually(lambda: server.statistics().sessions_open == 0)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_session_is_freed_behind_a_doubled_answer(client: str, server: GRPCComputeServer, expected: Outcome) -> None:
    schedule: dict[tuple[Direction, int], Fault] = {
        (Direction.TO_CLIENT, NUM_STEPS): Duplicate(),
        (Direction.TO_SERVER, CLOSE): Delay(0.2),
    }
    with FaultyRelay(server.address, schedule) as relay:
        assert CLIENTS[client](relay.address) == expected
        assert server.statistics().sessions_open == 0


@pytest.mark.parametrize(("client", "direction", "boundary", "fault"), cases((Delay(3600.0),), range(OPEN + 1, CLOSE)))
def test_a_delay_past_the_deadline_ends_the_session_and_spoils_nothing(
    client: str, direction: Direction, boundary: int, fault: Fault, server: GRPCComputeServer, expected: Outcome
) -> None:
    with FaultyRelay(server.address, {(direction, boundary): fault}) as relay:
        if client == "synchronous":
            positions = positions_until_the_deadline(relay.address, boundary, TOO_LATE_S[direction])
        else:
            timeout_s = TOO_LATE_S[direction]
            positions = asyncio.run(positions_until_the_deadline_async(relay.address, boundary, timeout_s))
        assert positions == expected.positions[: boundary - 1]
        num_done = boundary if direction is Direction.TO_CLIENT else boundary - 1
        assert server.statistics().steps == num_done
        assert CLIENTS[client](relay.address) == expected
    assert server.statistics().steps == num_done + NUM_STEPS


@pytest.mark.parametrize("direction", Direction)
def test_an_opening_past_the_deadline_spoils_nothing(
    direction: Direction, server: GRPCComputeServer, expected: Outcome
) -> None:
    with FaultyRelay(server.address, {(direction, OPEN): Delay(3600.0)}) as relay:
        with GRPCComputeClient(relay.address, connect_timeout_s=2.0) as client, pytest.raises(DeadlineExceededError):
            client.session()
        assert run(relay.address) == expected


@pytest.fixture(scope="module")
def bytes_of_a_session() -> dict[Direction, int]:
    """What a session and gRPC put on the wire, each way."""
    with (
        GRPCComputeServer(RunningSumHost(max_positions=128), port=0) as server,
        LinkEmulator(server.address) as link,
    ):
        run(link.address)
        statistics = link.statistics()
    return {Direction.TO_SERVER: statistics.bytes_to_server, Direction.TO_CLIENT: statistics.bytes_to_client}


@pytest.mark.parametrize(
    "fortieth", [pytest.param(part, marks=[] if part % 20 == 13 else [pytest.mark.faults]) for part in range(40)]
)
@pytest.mark.parametrize("direction", Direction)
def test_a_connection_reset_in_the_middle_of_anything_changes_nothing(
    direction: Direction,
    fortieth: int,
    bytes_of_a_session: dict[Direction, int],
    server: GRPCComputeServer,
    expected: Outcome,
) -> None:
    with LinkEmulator(server.address) as link:
        link.cut_after(bytes_of_a_session[direction] * fortieth // 40, direction)
        assert run(link.address) == expected
        assert link.statistics().cuts == 1
    assert server.statistics().steps == NUM_STEPS


def positions_until_the_deadline(address: str, boundary: int, timeout_s: float) -> list[int]:
    """Positions after each step before the one that is too late, which is given little time."""
    positions: list[int] = []
    with GRPCComputeClient(address, retry=SOON) as client, client.session() as session:
        for action in ACTIONS[: boundary - 1]:
            do(session, action)
            positions.append(session.position)
        with pytest.raises(DeadlineExceededError):
            do(session, ACTIONS[boundary - 1], timeout_s=timeout_s)
    return positions


async def positions_until_the_deadline_async(address: str, boundary: int, timeout_s: float) -> list[int]:
    positions: list[int] = []
    async with AsyncComputeClient(address, retry=SOON) as client, client.session() as session:
        for action in ACTIONS[: boundary - 1]:
            await do_async(session, action)
            positions.append(session.position)
        with pytest.raises(DeadlineExceededError):
            await do_async(session, ACTIONS[boundary - 1], timeout_s=timeout_s)
    return positions
