"""A server that goes on while what did the steps of a session behind it, a process say, is gone."""

import asyncio
from collections.abc import Callable

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    GRPCComputeClient,
    GRPCComputeServer,
    ServerUnavailableError,
    SessionNotFoundError,
)
from splitlearn_comm.client import ClientOptions, ClientStatistics
from splitlearn_comm.messages import Action
from splitlearn_comm.testing import RunningSumHost

TOKEN = torch.ones(1, 1, 4)


class Dying(RunningSumHost):
    """Has lost what it needs for some of its steps, from 1 on."""

    def __init__(self, *lost_steps: int) -> None:
        super().__init__()
        self._lost_steps = lost_steps
        self._num_steps = 0

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        self._num_steps += 1
        if self._num_steps in self._lost_steps:
            raise ServerUnavailableError("the process of model 'm' ended: killed by signal 9; load it again")
        return await super().run_step(session_id, action)


def run(addresses: list[str], num_steps: int, **options: object) -> tuple[list[float], ClientStatistics]:
    """The sums of some steps, and what was counted."""
    with GRPCComputeClient(AddressBook(addresses, in_order=True), **options) as client, client.session() as session:  # type: ignore[arg-type]
        return [float(session.step(TOKEN)[0, 0, 0]) for _ in range(num_steps)], client.statistics()


def run_async(addresses: list[str], num_steps: int, **options: object) -> tuple[list[float], ClientStatistics]:
    """The same with an asyncio client."""

    async def main() -> tuple[list[float], ClientStatistics]:
        async with (
            AsyncComputeClient(AddressBook(addresses, in_order=True), **options) as client,
            client.session() as session,
        ):  # type: ignore[arg-type]
            return [float((await session.step(TOKEN))[0, 0, 0]) for _ in range(num_steps)], client.statistics()

    return asyncio.run(main())


Run = Callable[..., tuple[list[float], ClientStatistics]]
both_clients = pytest.mark.parametrize("run", [run, run_async], ids=["synchronous", "asyncio"])


@both_clients
def test_its_session_goes_on_at_another_server(run: Run) -> None:
    with (
        GRPCComputeServer(Dying(*range(3, 100)), port=0) as first,
        GRPCComputeServer(RunningSumHost(), port=0) as second,
    ):
        sums, counted = run([first.address, second.address], 5)
        assert second.statistics().sessions_opened == 1
    assert sums == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert counted.replayed_steps == 2


@both_clients
def test_its_session_goes_on_there_once_it_is_back(run: Run) -> None:
    with GRPCComputeServer(Dying(3), port=0) as server:
        sums, counted = run([server.address], 5)
        assert server.statistics().sessions_opened == 2
    assert sums == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (counted.failovers, counted.replayed_steps) == (1, 2)


@both_clients
@pytest.mark.parametrize("options", [{}, {"replay_bytes": 0}], ids=["for good", "without history"])
def test_where_it_does_not_come_back_the_session_is_lost(run: Run, options: ClientOptions) -> None:
    with (
        GRPCComputeServer(Dying(*range(3, 100)), port=0) as server,
        pytest.raises((ServerUnavailableError, SessionNotFoundError), match="open a new session"),
    ):
        run([server.address], 5, **options)
