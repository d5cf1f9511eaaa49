"""A network that doubles a message that is refused makes two refusals; the second is nobody's answer."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    CommError,
    GRPCComputeClient,
    GRPCComputeServer,
    InvalidRequestError,
    RemoteInternalError,
    ResourceExhaustedError,
    SessionNotFoundError,
    StepOrderError,
)
from splitlearn_comm.client import ClientOptions
from splitlearn_comm.messages import Action
from splitlearn_comm.testing import Cut, Direction, Duplicate, FaultyFunction, FaultyRelay, RunningSumHost
from splitlearn_comm.testing.faults import Fault

TOKEN = torch.ones(1, 1, 4)
WRONG = torch.ones(1, 1, 3)
Outcome = torch.Tensor | type[CommError]


def run(address: str, inputs: Sequence[torch.Tensor], **options: object) -> list[Outcome]:
    """What a synchronous client gets for each step: an output, or an error."""
    outcomes: list[Outcome] = []
    with GRPCComputeClient(address, **options) as client, client.session() as session:  # type: ignore[arg-type]
        for hidden in inputs:
            try:
                outcomes.append(session.step(hidden))
            except CommError as error:
                outcomes.append(type(error))
    return outcomes


def run_async(address: str, inputs: Sequence[torch.Tensor], **options: object) -> list[Outcome]:
    """The same with an asyncio client."""

    async def main() -> list[Outcome]:
        outcomes: list[Outcome] = []
        async with AsyncComputeClient(address, **options) as client, client.session() as session:  # type: ignore[arg-type]
            for hidden in inputs:
                try:
                    outcomes.append(await session.step(hidden))
                except CommError as error:
                    outcomes.append(type(error))
        return outcomes

    return asyncio.run(main())


both_clients = pytest.mark.parametrize("run", [run, run_async], ids=["synchronous", "asyncio"])
Run = Callable[..., list[Outcome]]


def seen(outcomes: list[Outcome]) -> list[object]:
    """Outcomes to compare: of an output its first element."""
    return [outcome if isinstance(outcome, type) else float(outcome.flatten()[0]) for outcome in outcomes]


@both_clients
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("fault", [Duplicate(), Cut()])
def test_a_refusal_that_comes_twice_is_taken_once(run: Run, direction: Direction, fault: Fault) -> None:
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as server,
        FaultyRelay(server.address, {(direction, 2): fault}) as relay,
    ):
        outcomes = run(relay.address, [TOKEN, WRONG, 2 * TOKEN, WRONG, 3 * TOKEN])
        made = relay.statistics()
    assert seen(outcomes) == [1.0, InvalidRequestError, 3.0, InvalidRequestError, 6.0]
    assert made.duplicated + made.cut == 1
    assert server.statistics().sessions_opened == 1


@both_clients
def test_a_session_is_freed_behind_a_refusal_that_came_twice(run: Run) -> None:
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as server,
        FaultyRelay(server.address, {(Direction.TO_CLIENT, 2): Duplicate()}) as relay,
    ):
        assert seen(run(relay.address, [TOKEN, WRONG])) == [1.0, InvalidRequestError]
        assert server.statistics().sessions_open == 0


class RefusesAtFirst(RunningSumHost):
    """Has no room for a step of tens when it sees the first; the next it does."""

    num_refusals = 0

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        if float(getattr(action, "hidden", TOKEN).flatten()[0]) == 10.0 and not self.num_refusals:
            self.num_refusals += 1
            raise ResourceExhaustedError("no room just now")
        return await super().run_step(session_id, action)


@both_clients
@pytest.mark.parametrize(
    ("options", "last"), [({}, 3.0), ({"replay_bytes": 0}, StepOrderError)], ids=["rebuilt", "lost"]
)
def test_a_step_refused_to_its_client_and_done_all_the_same_is_not_in_the_session(
    run: Run, options: ClientOptions, last: object
) -> None:
    """The first of two messages is refused and the second, which nobody knows of, is done."""
    with (
        GRPCComputeServer(RefusesAtFirst(), port=0) as server,
        FaultyRelay(server.address, {(Direction.TO_SERVER, 2): Duplicate()}) as relay,
    ):
        outcomes = run(relay.address, [TOKEN, 10 * TOKEN, 2 * TOKEN], **options)
    assert seen(outcomes) == [1.0, ResourceExhaustedError, last]


@both_clients
def test_a_step_that_failed_in_a_service_without_state_and_was_done_at_the_second_time_is_nobodys(run: Run) -> None:
    function = FaultyFunction(2)
    with (
        GRPCComputeServer(function, port=0) as server,
        FaultyRelay(server.address, {(Direction.TO_SERVER, 2): Duplicate()}) as relay,
    ):
        outcomes = run(relay.address, [TOKEN, 5 * TOKEN, 2 * TOKEN])
    assert seen(outcomes) == [1.0, RemoteInternalError, 2.0]
    assert function.num_calls == 4


class Breaking(RunningSumHost):
    """Fails in the middle of its second step."""

    num_steps = 0

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        self.num_steps += 1
        if self.num_steps == 2:
            raise RuntimeError("half done")
        return await super().run_step(session_id, action)


@both_clients
def test_a_session_that_a_failure_ended_stays_ended(run: Run) -> None:
    with GRPCComputeServer(Breaking(), port=0) as server:
        outcomes = run(server.address, [TOKEN, TOKEN, TOKEN, TOKEN])
        assert server.statistics().sessions_opened == 1
    assert seen(outcomes) == [1.0, RemoteInternalError, SessionNotFoundError, SessionNotFoundError]
