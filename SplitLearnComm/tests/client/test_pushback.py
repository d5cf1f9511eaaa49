"""A server that refuses for now, and says when to come back: it is asked again then, within the deadline."""

import asyncio
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    ClientLimits,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    ResourceExhaustedError,
)
from splitlearn_comm.client import ClientOptions, FixedDelay
from splitlearn_comm.testing import Identity, RunningSumHost, eventually

TOKEN = torch.ones(1, 1, 4)
ONCE = FixedDelay(0, max_attempts=1)
NUM_CALLS = 60
FAST = ClientLimits(requests_per_s=30)


def use(address: str) -> tuple[float, int]:
    """Call and step as fast as may be; returns the last sum, and how often the session's connection was lost."""
    with GRPCComputeClient(address) as client:
        for _ in range(NUM_CALLS // 2):
            client.compute(TOKEN)
        with client.session() as session:
            for _ in range(NUM_CALLS // 2):
                output = session.step(TOKEN)
        return float(output[0, 0, 0]), client.statistics().retries


def use_async(address: str) -> tuple[float, int]:
    async def main() -> tuple[float, int]:
        async with AsyncComputeClient(address) as client:
            for _ in range(NUM_CALLS // 2):
                await client.compute(TOKEN)
            async with client.session() as session:
                for _ in range(NUM_CALLS // 2):
                    output = await session.step(TOKEN)
            return float(output[0, 0, 0]), client.statistics().retries

    return asyncio.run(main())


@pytest.mark.parametrize("use", [use, use_async])
def test_a_client_that_is_too_fast_is_slowed_to_what_it_may_and_gets_all(use: object) -> None:
    config = GRPCServerConfig(client_limits=FAST)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server:
        began_s = time.monotonic()
        assert use(server.address) == (NUM_CALLS / 2, 0)  # type: ignore[operator]
        took_s = time.monotonic() - began_s
        counted = server.statistics()
    assert (counted.computes, counted.steps, counted.sessions_opened) == (NUM_CALLS // 2, NUM_CALLS // 2, 1)
    assert counted.refusals > 0
    # What is saved up at first, and the one that may always pass, need not be waited for.
    assert took_s > (NUM_CALLS - FAST.requests_per_s - 1) / FAST.requests_per_s


def test_a_crowd_that_was_told_the_same_moment_gets_in_one_after_another() -> None:
    config = GRPCServerConfig(client_limits=ClientLimits(requests_per_s=20))
    with (
        GRPCComputeServer(Identity(), port=0, config=config) as server,
        GRPCComputeClient(server.address, timeout_s=60) as client,
        ThreadPoolExecutor(50) as pool,
    ):
        answers = list(pool.map(client.compute, [TOKEN] * 50))
        assert all(torch.equal(answer, TOKEN) for answer in answers)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_session_is_opened_when_there_is_room(is_async: bool) -> None:
    config = GRPCServerConfig(client_limits=ClientLimits(max_sessions=1))

    async def open_async(address: str) -> float:
        async with AsyncComputeClient(address) as client, client.session() as session:
            return float((await session.step(TOKEN))[0, 0, 0])

    def open_session(address: str) -> float:
        if is_async:
            return asyncio.run(open_async(address))
        with GRPCComputeClient(address) as client, client.session() as session:
            return float(session.step(TOKEN)[0, 0, 0])

    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
        GRPCComputeClient(server.address) as client,
        ThreadPoolExecutor(1) as pool,
        client.session() as first,
    ):
        opened = pool.submit(open_session, server.address)
        eventually(lambda: server.statistics().refusals > 0)
        first.close()
        assert opened.result() == 1.0


def test_a_call_waits_for_others_in_flight() -> None:
    config = GRPCServerConfig(client_limits=ClientLimits(max_calls=1))
    with (
        GRPCComputeServer(Identity(), port=0, config=config) as server,
        GRPCComputeClient(server.address) as client,
        ThreadPoolExecutor(1) as pool,
        client.session() as session,
    ):
        call = pool.submit(client.compute, TOKEN)
        assert not futures.wait([call], timeout=0.3).done
        session.close()
        assert torch.equal(call.result(), TOKEN)


def first_refusal(attempt: Callable[[torch.Tensor], object]) -> ResourceExhaustedError | None:
    for _ in range(9):
        try:
            attempt(TOKEN)
        except ResourceExhaustedError as error:
            return error
    return None


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        pytest.param({"retry": ONCE}, ClientLimits(requests_per_s=1), id="no attempts"),
        pytest.param({"timeout_s": 0.9}, ClientLimits(requests_per_s=0.5), id="no time"),
    ],
)
def test_it_is_refused_at_once_where_waiting_is_not_wanted_or_too_long(
    options: ClientOptions, limits: ClientLimits
) -> None:
    config = GRPCServerConfig(client_limits=limits)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server:
        with GRPCComputeClient(server.address, **options) as client, client.session() as session:
            began_s = time.monotonic()
            for attempt in (client.compute, session.step):
                assert f"more requests than {limits.requests_per_s:g} a second" in str(first_refusal(attempt))
            assert time.monotonic() - began_s < 20.0
        with GRPCComputeClient(server.address) as client:
            client.compute(TOKEN)


def test_a_step_that_was_refused_for_now_can_be_made_later() -> None:
    config = GRPCServerConfig(client_limits=ClientLimits(requests_per_s=10))
    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
        GRPCComputeClient(server.address, retry=ONCE) as client,
        client.session() as session,
    ):
        done = refused = 0
        while done < 20:
            try:
                output = session.step(TOKEN)
                done += 1
                assert float(output[0, 0, 0]) == done
            except ResourceExhaustedError:
                refused += 1
        # The user does not wait, but is made to: each refusal is followed by a step that is not.
        assert 0 < refused <= 10
        assert server.statistics().sessions_opened == 1


def test_a_server_that_does_not_know_when_is_not_waited_for() -> None:
    config = GRPCServerConfig(max_sessions=1)
    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
        GRPCComputeClient(server.address, retry=FixedDelay(60)) as client,
        client.session(),
        pytest.raises(ResourceExhaustedError, match="takes no more"),
    ):
        client.session()


def test_a_replica_with_room_is_asked_before_a_busy_one_is_waited_for() -> None:
    config = GRPCServerConfig(client_limits=ClientLimits(requests_per_s=0.01))
    with (
        GRPCComputeServer(Identity(), port=0, config=config) as busy,
        GRPCComputeServer(Identity(), port=0) as idle,
        GRPCComputeClient(AddressBook([busy.address, idle.address], in_order=True)) as client,
    ):
        for _ in range(4):
            assert torch.equal(client.compute(TOKEN), TOKEN)
        assert idle.statistics().computes >= 2
