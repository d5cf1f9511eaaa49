"""A deadline for each kind of call."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from splitlearn_comm import AsyncComputeClient, DeadlineExceededError, GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.client import ClientOptions, ClientSettings, Timeouts
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.assembly import Packing
from splitlearn_comm.framing.chunks import messages_of
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import Action, Crop, Forward
from splitlearn_comm.testing import DroppingPeer, RunningSumHost, SlowFunction
from splitlearn_comm.training import BackwardPass, ForwardPass, Update

TOKEN = torch.ones(1, 1, 4)
PATIENT = Timeouts(connect_s=60, step_s=60)


def attempts(address: str, options: ClientOptions, timeout_s: float | None = None) -> dict[str, str]:
    """What comes of a call and of a step: an answer, or after how long it was given up."""
    with GRPCComputeClient(address, **options) as client, client.session() as session:
        tries: dict[str, Callable[[], object]] = {
            "compute": lambda: client.compute(TOKEN, timeout_s=timeout_s),
            "step": lambda: session.step(TOKEN, timeout_s=timeout_s),
        }
        return {kind: said(attempt) for kind, attempt in tries.items()}


def attempts_async(address: str, options: ClientOptions, timeout_s: float | None = None) -> dict[str, str]:
    async def main() -> dict[str, str]:
        async with AsyncComputeClient(address, **options) as client, client.session() as session:
            outcomes = {}
            for kind, attempt in (("compute", client.compute), ("step", session.step)):
                try:
                    await attempt(TOKEN, timeout_s=timeout_s)
                    outcomes[kind] = "answered"
                except DeadlineExceededError as error:
                    outcomes[kind] = seconds_in(error)
            return outcomes

    return asyncio.run(main())


def said(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except DeadlineExceededError as error:
        return seconds_in(error)
    return "answered"


def seconds_in(error: DeadlineExceededError) -> str:
    return str(error).partition("within ")[2].partition(" s")[0]


@pytest.mark.parametrize("attempts", [attempts, attempts_async], ids=["synchronous", "asyncio"])
@pytest.mark.parametrize(
    ("options", "timeout_s", "outcomes"),
    [
        ({"timeout_s": 0.21, "timeouts": Timeouts(connect_s=60)}, None, {"compute": "0.21", "step": "0.21"}),
        ({"timeouts": Timeouts(compute_s=0.22)}, None, {"compute": "0.22", "step": "answered"}),
        ({"timeouts": Timeouts(step_s=0.23)}, None, {"compute": "answered", "step": "0.23"}),
        (
            {"timeout_s": 0.24, "timeouts": Timeouts(connect_s=60, step_s=60)},
            None,
            {"compute": "0.24", "step": "answered"},
        ),
        ({"timeouts": Timeouts(compute_s=60, step_s=60)}, 0.25, {"compute": "0.25", "step": "0.25"}),
        ({"timeouts": Timeouts(compute_s=0.1, step_s=0.1)}, 60.0, {"compute": "answered", "step": "answered"}),
    ],
)
def test_each_kind_has_its_own_and_a_call_may_have_one_of_its_own(
    attempts: Callable[..., dict[str, str]], options: ClientOptions, timeout_s: float | None, outcomes: dict[str, str]
) -> None:
    with GRPCComputeServer(SlowFunction(0.6), port=0) as server:
        assert attempts(server.address, options, timeout_s) == outcomes


def test_opening_and_asking_have_theirs() -> None:
    with DroppingPeer() as silent:
        timeouts = Timeouts(connect_s=0.11, control_s=0.12)
        with GRPCComputeClient(silent.address, connect_timeout_s=0.5, timeouts=timeouts) as client:
            assert [said(attempt) for attempt in (client.session, client.get_info, client.health)] == [
                "0.11",
                "0.12",
                "0.12",
            ]


@pytest.mark.parametrize("kind", [item.name for item in fields(Timeouts)])
def test_no_time_at_all_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"timeouts.{kind} must be greater than zero, came 0"):
        Timeouts(**{kind: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout_s", [0, -1.0, math.nan])
def test_a_step_without_time_is_refused_and_the_session_goes_on(timeout_s: float) -> None:
    async def asynchronous(address: str) -> float:
        async with AsyncComputeClient(address) as client, client.session() as session:
            for attempt in (session.step, client.compute):
                with pytest.raises(ValueError, match="timeout_s must be greater than zero, came"):
                    await attempt(TOKEN, timeout_s=timeout_s)
            return float((await session.step(TOKEN))[0, 0, 0])

    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        with GRPCComputeClient(server.address) as client, client.session() as session:
            for attempt in (session.step, client.compute):
                with pytest.raises(ValueError, match="timeout_s must be greater than zero, came"):
                    attempt(TOKEN, timeout_s=timeout_s)
            assert float(session.step(TOKEN)[0, 0, 0]) == 1.0
        assert asyncio.run(asynchronous(server.address)) == 1.0


@pytest.mark.parametrize("attempts", [attempts, attempts_async], ids=["synchronous", "asyncio"])
@pytest.mark.parametrize("seconds", [math.inf, 1e300])
def test_without_a_bound_it_is_waited_for(attempts: Callable[..., dict[str, str]], seconds: float) -> None:
    options: ClientOptions = {"timeout_s": seconds, "connect_timeout_s": seconds, "dead_after_s": seconds}
    with GRPCComputeServer(SlowFunction(0.01), port=0) as server:
        for timeout_s in (None, seconds):
            assert attempts(server.address, options, timeout_s) == {"compute": "answered", "step": "answered"}


def test_a_server_is_not_told_of_no_bound() -> None:
    assert not Deadline.of_step(math.inf, 5.0).is_told


def test_each_kind_of_training_step_has_a_time_of_its_own() -> None:
    own = Timeouts(forward_s=5, backward_s=6, update_s=1)
    settings = ClientSettings(addresses=("localhost:1",), timeout_s=7, timeouts=own)
    gradient = torch.ones(1, 1, 1)
    assert settings.training_timeout_s(ForwardPass(1, gradient)) == 5
    assert settings.training_timeout_s(BackwardPass(1, gradient)) == 6
    assert settings.training_timeout_s(Update(1, ())) == 1
    assert ClientSettings(addresses=("localhost:1",), timeout_s=7).training_timeout_s(Update(1, ())) == 7


def test_what_is_left_out_is_as_the_two_words_say() -> None:
    settings = ClientSettings(addresses=("localhost:1",), timeout_s=7, connect_timeout_s=3)
    assert (settings.compute_timeout_s, settings.step_timeout_s) == (7, 7)
    assert (settings.control_timeout_s, settings.open_timeout_s) == (3, 3)


@pytest.mark.parametrize(
    ("own_s", "usual_s", "is_told"), [(None, 300.0, False), (None, 5.0, True), (300.0, 300.0, True), (0.1, 300.0, True)]
)
def test_a_server_is_told_of_a_deadline_that_may_matter_to_it(
    own_s: float | None, usual_s: float, is_told: bool
) -> None:
    assert Deadline.of_step(own_s, usual_s).is_told is is_told


@pytest.mark.parametrize("action", [Forward(torch.ones(1, 300, 4)), Crop(2)], ids=["forward", "crop"])
@pytest.mark.parametrize("chunk_bytes", [0, 1 << 10])
def test_a_step_that_says_how_long_is_the_step_it_was(action: Action, chunk_bytes: int) -> None:
    inbox = Inbox(1 << 20)
    for remaining_s, timeout_ms in ((1.5, 1500), (0.0001, 1), (1e9, (1 << 32) - 1)):
        told = steps.with_timeout(steps.encode_step(3, 7, action, Packing("", chunk_bytes)), remaining_s)
        (request,) = [request for piece in messages_of(told) if (request := inbox.request(piece))]
        assert (request.step_id, request.position, request.timeout_ms) == (3, 7, timeout_ms)
        if isinstance(action, Forward):
            assert isinstance(request.action, Forward)
            assert torch.equal(request.action.hidden, action.hidden)
        else:
            assert request.action == action
