"""A session that is closed while its connection breaks leaves nothing at the server."""

import asyncio

import pytest
import torch

from splitlearn_comm import AsyncComputeClient, GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.testing import Cut, Direction, Drop, FaultyRelay, RunningSumHost
from splitlearn_comm.testing.faults import Fault

HIDDEN = torch.ones(1, 2, 4)
CLOSE = 2
"""Number of the close among the messages: behind the open and a step."""
SCHEDULES: list[dict[tuple[Direction, int], Fault]] = [
    {},
    {(Direction.TO_SERVER, CLOSE): Drop()},
    {(Direction.TO_CLIENT, CLOSE): Drop()},
    {(Direction.TO_SERVER, CLOSE): Cut()},
    {(Direction.TO_SERVER, CLOSE): Drop(), (Direction.TO_SERVER, CLOSE + 1): Drop()},
]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@schedules
def test_it_is_closed_over_another_connection(schedule: dict[tuple[Direction, int], Fault]) -> None:
    with GRPCComputeServer(RunningSumHost(), port=0) as server, FaultyRelay(server.address, schedule) as relay:
        with GRPCComputeClient(relay.address) as client:
            session = client.session()
            session.step(HIDDEN)
            session.close()
            assert server.statistics().sessions_open == 0
        counted = relay.statistics()
        assert counted.dropped + counted.cut == len(schedule)


@schedules
def test_with_asyncio_too(schedule: dict[tuple[Direction, int], Fault]) -> None:
    async def main(address: str, server: GRPCComputeServer) -> None:
        async with AsyncComputeClient(address) as client:
            session = client.session()
            await session.step(HIDDEN)
            await session.close()
            assert server.statistics().sessions_open == 0

    with GRPCComputeServer(RunningSumHost(), port=0) as server, FaultyRelay(server.address, schedule) as relay:
        asyncio.run(main(relay.address, server))
