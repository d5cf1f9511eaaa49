"""Sessions that train while their server stops: they are told, and may still be saved."""

import itertools
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    ServerUnavailableError,
)
from splitlearn_comm.client import ClientSession, FixedDelay
from splitlearn_comm.testing import Direction, Drop, FaultyRelay, RunningSumHost, eventually
from splitlearn_comm.testing.faults import Fault
from splitlearn_comm.training import ForwardPass, ReadTraining, StartTraining, Trained, TrainingAction, TrainingState

STATE = {"weight": torch.arange(3.0)}
HIDDEN = torch.ones(1, 2, 4)
ONCE = FixedDelay(0.01, max_attempts=2)


class TrainingHost(RunningSumHost):
    """Trains nothing, and gives the same state whenever it is asked."""

    async def train(self, session_id: str, action: TrainingAction) -> torch.Tensor | Trained | None:
        match action:
            case ForwardPass(hidden=hidden):
                return hidden
            case ReadTraining():
                return Trained(state=TrainingState(0, STATE, 1))
        return None


def started(*, patience_s: float = 20.0) -> GRPCComputeServer:
    server = GRPCComputeServer(TrainingHost(), port=0, config=GRPCServerConfig(drain_idle_timeout_s=patience_s))
    server.start(block=False)
    return server


def trains_until_it_is_told(session: ClientSession, stopping: Future[None]) -> None:
    for number in range(1, 10_000):
        assert not stopping.done(), "it was not waited for"
        left = session.train(ForwardPass(number, HIDDEN)).gradient
        assert left is not None
        assert torch.equal(left, HIDDEN)
        if session.is_server_stopping:
            return
    raise AssertionError("it was never told")


def trains_for_ever(session: ClientSession) -> None:
    for number in itertools.count(1):
        session.train(ForwardPass(number, HIDDEN))


@pytest.mark.parametrize("num_servers", [1, 2])
def test_it_is_told_saved_and_waited_for(num_servers: int) -> None:
    first = started()
    with GRPCComputeServer(TrainingHost(), port=0) as second, ThreadPoolExecutor(1) as pool:
        book = AddressBook([first.address, second.address][:num_servers], in_order=True)
        with GRPCComputeClient(book) as client:
            session = client.session()
            session.train(StartTraining(full=True))
            assert not session.is_server_stopping
            stopping = pool.submit(first.stop, grace_s=120)
            trains_until_it_is_told(session, stopping)
            state = session.train(ReadTraining()).state
            assert state is not None
            assert torch.equal(state.tensors["weight"], STATE["weight"])
            assert not stopping.done()
            session.close()
            stopping.result(timeout=30)
            assert client.statistics().moves == 0
        assert second.statistics().sessions_opened == 0


def test_connections_may_break_meanwhile() -> None:
    first = started()
    faults: dict[tuple[Direction, int], Fault] = {(Direction.TO_CLIENT, n): Drop() for n in range(4, 5000, 5)}
    with FaultyRelay(first.address, faults) as relay, ThreadPoolExecutor(1) as pool:
        with GRPCComputeClient(relay.address) as client, client.session() as session:
            session.train(StartTraining(full=True))
            stopping = pool.submit(first.stop, grace_s=120)
            trains_until_it_is_told(session, stopping)
            for _ in range(10):
                assert session.train(ReadTraining()).state is not None
                assert session.is_server_stopping
        assert relay.statistics().dropped > 2
        stopping.result(timeout=30)


def test_one_that_does_nothing_is_waited_for_as_long_as_was_said() -> None:
    first = started(patience_s=0.4)
    with GRPCComputeClient(first.address, retry=ONCE) as client, client.session() as session:
        session.train(StartTraining(full=True))
        time.sleep(0.5)  # it is at its own part: what it did before the server was stopped does not count
        began_s = time.monotonic()
        first.stop(grace_s=120)
        assert 0.4 <= time.monotonic() - began_s < 30
        with pytest.raises(ServerUnavailableError):
            session.train(ReadTraining())


def test_one_that_goes_on_and_on_is_ended_when_the_grace_is_over() -> None:
    first = started()
    with GRPCComputeClient(first.address, retry=ONCE) as client, ThreadPoolExecutor(1) as pool:
        session = client.session()
        session.train(StartTraining(full=True))
        stopping = pool.submit(first.stop, grace_s=0.5)
        with pytest.raises(ServerUnavailableError):
            trains_for_ever(session)
        assert session.is_server_stopping
        stopping.result(timeout=30)


def test_sessions_that_do_not_train_are_not_waited_for() -> None:
    first = started()
    with GRPCComputeClient(first.address, retry=ONCE) as client:
        session = client.session()
        session.step(HIDDEN)
        began_s = time.monotonic()
        first.stop(grace_s=120)
        assert time.monotonic() - began_s < 15
        eventually(lambda: first.statistics().sessions_open == 0)
        with pytest.raises(ServerUnavailableError):
            session.step(HIDDEN)
