"""Faults, and servers without room, on the way of a session from one server to another."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    ResourceExhaustedError,
)
from splitlearn_comm.messages import KVEntries
from splitlearn_comm.testing import Direction, Duplicate, FaultyRelay, RunningSumHost, eventually

WIDE = 4096
PATIENT = GRPCServerConfig(drain_idle_timeout_s=60)


class Full(RunningSumHost):
    """Opens sessions and has no room for what is in them."""

    num_refused = 0

    async def import_session(self, session_id: str, cache: KVEntries) -> None:
        self.num_refused += 1
        raise ResourceExhaustedError("no room for its cache")


def run(addresses: list[str], hidden: list[torch.Tensor], leave: Callable[[], None]) -> tuple[list[float], int]:
    """The last sum of each step, and the moves; what makes the session leave comes before the last of them."""
    with (
        GRPCComputeClient(AddressBook(addresses, in_order=True), replay_bytes=0) as client,
        client.session() as session,
    ):
        outputs = [session.step(one) for one in hidden[:-1]]
        leave()
        outputs.append(session.step(hidden[-1]))
        return [float(output[0, -1, 0]) for output in outputs], client.statistics().moves


def run_async(addresses: list[str], hidden: list[torch.Tensor], leave: Callable[[], None]) -> tuple[list[float], int]:
    """The same with an asyncio client."""

    async def main() -> tuple[list[float], int]:
        async with (
            AsyncComputeClient(AddressBook(addresses, in_order=True), replay_bytes=0) as client,
            client.session() as session,
        ):
            outputs = [await session.step(one) for one in hidden[:-1]]
            await asyncio.to_thread(leave)
            outputs.append(await session.step(hidden[-1]))
            return [float(output[0, -1, 0]) for output in outputs], client.statistics().moves

    return asyncio.run(main())


Run = Callable[[list[str], list[torch.Tensor], Callable[[], None]], tuple[list[float], int]]
both_clients = pytest.mark.parametrize("run", [run, run_async], ids=["synchronous", "asyncio"])


@contextmanager
def first_server(host: RunningSumHost) -> Iterator[tuple[GRPCComputeServer, Callable[[], None]]]:
    """A server, and what makes it stop while others go on."""
    server = GRPCComputeServer(host, port=0, config=PATIENT)
    server.start(block=False)
    with ThreadPoolExecutor(1) as pool:
        try:
            yield server, lambda: pool.submit(server.stop, grace_s=120) and None
        finally:
            server.stop(grace_s=0)


@both_clients
@pytest.mark.parametrize("direction", Direction)
def test_a_second_answer_to_an_open_is_not_that_to_an_import(run: Run, direction: Direction) -> None:
    full, token = Full(), torch.ones(1, 1, 4)
    with (
        first_server(RunningSumHost()) as (first, stop),
        GRPCComputeServer(full, port=0) as second,
        FaultyRelay(second.address, {(direction, 0): Duplicate()}) as relay,
    ):

        def leave() -> None:
            stop()
            eventually(lambda: full.num_refused > 0)

        assert run([first.address, relay.address], [token, token], leave) == ([1.0, 2.0], 0)
        assert relay.statistics().duplicated == 1


@both_clients
def test_a_second_answer_to_an_open_is_not_that_to_an_export(run: Run) -> None:
    token = torch.ones(1, 1, 4)
    with (
        first_server(RunningSumHost()) as (first, stop),
        GRPCComputeServer(RunningSumHost(), port=0) as second,
        FaultyRelay(first.address, {(Direction.TO_CLIENT, 2): Duplicate()}) as relay,
    ):

        def leave() -> None:
            stop()
            eventually(lambda: relay.statistics().duplicated > 0)

        assert run([relay.address, second.address], [token, token], leave) == ([1.0, 2.0], 1)


@both_clients
def test_a_server_that_does_not_take_a_session_leaves_no_limit_behind(run: Run) -> None:
    full = Full(hidden_size=WIDE, max_positions=1000)
    small = GRPCServerConfig(max_message_bytes=1 << 20)
    with (
        first_server(RunningSumHost(hidden_size=WIDE, max_positions=1000)) as (first, stop),
        GRPCComputeServer(full, port=0, config=small) as second,
    ):

        def leave() -> None:
            stop()
            eventually(lambda: full.num_refused > 0)

        hidden = [torch.ones(1, 1, WIDE), torch.ones(1, 128, WIDE)]  # 2 MiB
        assert run([first.address, second.address], hidden, leave) == ([1.0, 129.0], 0)
