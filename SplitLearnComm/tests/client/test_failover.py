"""Sessions that lose their server, or are asked to leave it."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    ComputeFunction,
    FingerprintMismatchError,
    GRPCComputeServer,
    GRPCServerConfig,
    ResourceExhaustedError,
    ServerUnavailableError,
    SessionNotFoundError,
)
from splitlearn_comm.client import ClientOptions, FixedDelay
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.protocol import SESSION
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import LinkEmulator, RunningSumHost, ServerProcess, eventually

pytestmark = pytest.mark.slow

SUMS = "splitlearn_comm.testing:RunningSumHost"
NUM_STEPS = 40
HIDDEN_BTH = torch.randint(-9, 9, (2, NUM_STEPS, 4)).float()
"""Sums of small integers are exact."""
EXPECTED_BTH = HIDDEN_BTH.cumsum(1)


def stepped(step: Callable[[torch.Tensor], torch.Tensor], at: dict[int, Callable[[], object]]) -> torch.Tensor:
    """All tokens, one a step; before some of them something happens."""
    outputs = []
    for index in range(NUM_STEPS):
        at.get(index, lambda: None)()
        outputs.append(step(HIDDEN_BTH[:, index : index + 1]))
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("index", [1, 20, 39])
def test_a_session_whose_server_is_killed_goes_on_at_another(index: int) -> None:
    with (
        ServerProcess(SUMS) as first,
        ServerProcess(SUMS) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
        client.session() as session,
    ):
        output_BTH = stepped(session.step, {index: first.kill})
        assert torch.equal(output_BTH, EXPECTED_BTH)
        assert session.position == NUM_STEPS
        counted = client.statistics()
        assert (counted.failovers, counted.replayed_steps, counted.moves) == (1, index, 0)


def test_a_session_goes_on_at_another_with_asyncio_too() -> None:
    async def main() -> None:
        with ServerProcess(SUMS) as first, ServerProcess(SUMS) as second:
            async with (
                AsyncComputeClient(AddressBook([first.address, second.address], in_order=True)) as client,
                client.session() as session,
            ):
                outputs = []
                for index in range(NUM_STEPS):
                    if index == 15:
                        first.kill()
                    outputs.append(await session.step(HIDDEN_BTH[:, index : index + 1]))
                assert torch.equal(torch.cat(outputs, dim=1), EXPECTED_BTH)
                assert client.statistics().replayed_steps == 15

    asyncio.run(main())


def test_a_server_killed_while_it_computes_does_not_lose_the_step() -> None:
    """The step that was under way is done once more, at the other server, from the same state."""
    with (
        ServerProcess(SUMS) as first,
        ServerProcess(SUMS) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
        client.session() as session,
    ):
        killer = threading.Timer(0.02, first.kill)
        killer.start()
        output_BTH = stepped(session.step, {NUM_STEPS - 1: killer.join})
        assert torch.equal(output_BTH, EXPECTED_BTH)


def test_everything_is_said_again_in_order_crops_and_reorders_too() -> None:
    with (
        ServerProcess(SUMS) as first,
        ServerProcess(SUMS) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
        client.session() as session,
    ):
        session.step(HIDDEN_BTH[:, :5])
        session.start_recording()
        session.crop(2)
        session.reorder([1, 0, 1])
        first.kill()
        output_BTH = session.step(HIDDEN_BTH[[1, 0, 1], 3:6])
        assert torch.equal(output_BTH, EXPECTED_BTH[[1, 0, 1], 3:6])


def test_a_server_that_was_started_again_is_told_everything_again() -> None:
    with ServerProcess(SUMS) as first, Client(first.address) as client, client.session() as session:
        session.step(HIDDEN_BTH[:, :5])
        first.kill()
        with GRPCComputeServer(RunningSumHost(), port=int(first.address.rpartition(":")[2])):
            assert torch.equal(session.step(HIDDEN_BTH[:, 5:7]), EXPECTED_BTH[:, 5:7])
        assert client.statistics().replayed_steps == 1


@pytest.mark.parametrize("options", [{"replay_bytes": 0}, {"replay_bytes": 100}])
def test_without_room_for_what_was_sent_a_lost_session_is_lost(options: ClientOptions) -> None:
    with (
        ServerProcess(SUMS) as first,
        ServerProcess(SUMS) as second,
        Client(AddressBook([first.address, second.address], in_order=True), **options) as client,
        client.session() as session,
    ):
        session.step(HIDDEN_BTH)
        first.kill()
        with pytest.raises(ServerUnavailableError, match=r"lost in the middle .* at position 40"):
            session.step(HIDDEN_BTH)
        with client.session() as another:
            assert torch.equal(another.step(HIDDEN_BTH), EXPECTED_BTH)


def test_what_was_sent_is_kept_as_it_was() -> None:
    """A caller may use the memory of a tensor again as soon as its step is done."""
    hidden_BTH = torch.randint(-9, 9, (40_000, 12, 4)).float()  # 7.7 MB, in chunks
    expected_BTH = torch.cat((hidden_BTH, hidden_BTH), dim=1).cumsum(1)[:, 12:]
    with (
        ServerProcess(SUMS) as first,
        ServerProcess(SUMS) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
        client.session() as session,
    ):
        sent_BTH = hidden_BTH.clone()
        session.step(sent_BTH)
        sent_BTH.zero_()
        first.kill()
        assert torch.equal(session.step(hidden_BTH), expected_BTH)


def test_all_servers_gone_is_an_error_in_time() -> None:
    with (
        ServerProcess(SUMS) as first,
        ServerProcess(SUMS) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
        client.session() as session,
    ):
        session.step(HIDDEN_BTH)
        first.kill()
        second.kill()
        with pytest.raises(ServerUnavailableError, match=r"lost in the middle .*nothing listens"):
            session.step(HIDDEN_BTH)


class Counting(ComputeFunction):
    """Gives back what it gets, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return tensor


def test_a_function_without_state_is_not_called_twice_for_a_step() -> None:
    second = Counting()
    with ServerProcess("splitlearn_comm.testing:Identity") as first, GRPCComputeServer(second, port=0) as server:
        with Client(AddressBook([first.address, server.address], in_order=True)) as client, client.session() as session:
            output_BTH = stepped(session.step, {20: first.kill})
        assert torch.equal(output_BTH, HIDDEN_BTH)
        assert session.position == NUM_STEPS
        assert second.calls == 20


def test_a_drain_moves_sessions_with_their_state() -> None:
    first = GRPCComputeServer(RunningSumHost(), port=0)
    first.start(block=False)
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
    ):
        half_way, may_go_on = threading.Barrier(9), threading.Event()

        def generate(_: int) -> bool:
            with client.session() as session:
                output_BTH = stepped(session.step, {20: lambda: (half_way.wait(), may_go_on.wait())})
                return torch.equal(output_BTH, EXPECTED_BTH)

        with ThreadPoolExecutor(9) as pool:
            sessions = [pool.submit(generate, number) for number in range(8)]
            half_way.wait()
            assert first.statistics().sessions_open == 8
            stopping = pool.submit(first.stop, grace_s=60)
            while client_is_asked_to(first):
                pass
            may_go_on.set()
            assert all(session.result() for session in sessions)
            stopping.result()
        counted = client.statistics()
        assert (counted.moves, counted.failovers, counted.replayed_steps) == (8, 0, 0)
        assert second.statistics().sessions_opened == 8


def client_is_asked_to(server: GRPCComputeServer) -> bool:
    """Whether a server still says that it takes calls."""
    with Client(server.address) as client:
        return client.health()


def test_a_server_that_drains_opens_no_new_sessions_and_the_client_asks_another() -> None:
    first = GRPCComputeServer(RunningSumHost(), port=0, config=GRPCServerConfig(drain_idle_timeout_s=60))
    first.start(block=False)
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
        ThreadPoolExecutor(1) as pool,
        grpc.insecure_channel(first.address) as channel,
    ):
        # One that does not come to take its session keeps the server draining.
        outbox: SimpleQueue[bytes | None] = SimpleQueue()
        kept = channel.stream_stream(SESSION)(iter(outbox.get, None))
        outbox.put(steps.encode_open(steps.Open("kept", can_move=True)))
        next(kept)
        stopping = pool.submit(first.stop, grace_s=60)
        while client_is_asked_to(first):
            pass
        with client.session() as another:
            assert torch.equal(another.step(HIDDEN_BTH), EXPECTED_BTH)
        assert not stopping.done()
        assert second.statistics().sessions_opened == 1
        outbox.put(None)
        back = iter((steps.encode_open(steps.Open("kept", resume=True, can_move=True)), steps.encode_close()))
        answers = channel.stream_stream(SESSION)(back)
        assert [Inbox(1000).answer(next(answers)).error for _ in range(2)] == [None, None]
        stopping.result(timeout=30)


def test_a_client_without_another_server_does_not_hold_up_a_drain() -> None:
    server = GRPCComputeServer(RunningSumHost(), port=0)
    server.start(block=False)
    with Client(server.address) as client:
        session = client.session()
        session.step(HIDDEN_BTH)
        server.stop(grace_s=600)
        with pytest.raises((ServerUnavailableError, SessionNotFoundError)):
            session.step(HIDDEN_BTH)


@pytest.mark.slow
def test_a_server_that_hangs_is_given_up_within_the_bound() -> None:
    """Stopped, its process takes packets and answers none: only the missing signs of life tell."""
    with (
        ServerProcess(SUMS) as first,
        ServerProcess(SUMS) as second,
        Client(AddressBook([first.address, second.address], in_order=True), dead_after_s=3.0) as client,
        client.session() as session,
    ):
        session.step(HIDDEN_BTH[:, :5])
        os.kill(first.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        assert torch.equal(session.step(HIDDEN_BTH[:, 5:7]), EXPECTED_BTH[:, 5:7])
        # Within the bound; the rest is for a machine that is busy.
        assert time.monotonic() - began_s < 20.0
        assert client.statistics().failovers == 1


class Full(RunningSumHost):
    """Has room for nobody."""

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        raise ResourceExhaustedError("no room here")


def test_a_server_without_room_is_passed_over() -> None:
    with (
        ServerProcess(SUMS) as first,
        GRPCComputeServer(Full(), port=0) as full,
        GRPCComputeServer(RunningSumHost(), port=0) as third,
        Client(AddressBook([first.address, full.address, third.address], in_order=True)) as client,
        client.session() as session,
    ):
        assert torch.equal(stepped(session.step, {5: first.kill}), EXPECTED_BTH)
        assert third.statistics().sessions_opened == 1


def test_a_session_that_nobody_else_takes_stays_at_the_server_that_drains() -> None:
    first = GRPCComputeServer(RunningSumHost(), port=0)
    first.start(block=False)
    with (
        GRPCComputeServer(Full(), port=0) as full,
        Client(AddressBook([first.address, full.address], in_order=True), replay_bytes=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        with client.session() as session:
            session.step(HIDDEN_BTH[:, :1])
            stopping = pool.submit(first.stop, grace_s=60)
            while client_is_asked_to(first):
                pass
            for index in range(1, NUM_STEPS):
                assert torch.equal(session.step(HIDDEN_BTH[:, index : index + 1]), EXPECTED_BTH[:, index : index + 1])
        stopping.result()
        assert client.statistics().moves == 0


def test_a_server_of_something_else_is_no_replica() -> None:
    other = RunningSumHost(fingerprint="other weights")
    with (
        ServerProcess(SUMS) as first,
        GRPCComputeServer(other, port=0) as second,
        Client(AddressBook([first.address, second.address], in_order=True)) as client,
        client.session() as session,
    ):
        session.step(HIDDEN_BTH[:, :1])
        first.kill()
        with pytest.raises(FingerprintMismatchError, match="different models"):
            session.step(HIDDEN_BTH[:, 1:2])


@pytest.mark.slow
def test_many_sessions_outlive_a_short_absence_of_their_server() -> None:
    async def main() -> None:
        first = ServerProcess(SUMS)
        port = int(first.address.rpartition(":")[2])
        async with AsyncComputeClient(first.address, retry=FixedDelay(0.2, max_attempts=60)) as client:
            sessions = [client.session() for _ in range(8)]
            await asyncio.gather(*(session.step(HIDDEN_BTH[:, :3]) for session in sessions))
            with first:
                first.kill()
            steps = [asyncio.create_task(session.step(HIDDEN_BTH[:, 3:5])) for session in sessions]
            with await asyncio.to_thread(ServerProcess, SUMS, port=port):
                for output_BTH in await asyncio.gather(*steps):
                    assert torch.equal(output_BTH, EXPECTED_BTH[:, 3:5])
                for session in sessions:
                    await session.close()

    asyncio.run(main())


def test_a_server_that_comes_back_still_has_the_session_that_nobody_else_took() -> None:
    """Only the way to it was cut: what it holds is resumed, nothing is said again."""
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as first,
        LinkEmulator(first.address) as link,
        GRPCComputeServer(Full(), port=0) as full,
        Client(
            AddressBook([link.address, full.address], in_order=True), retry=FixedDelay(0.2, max_attempts=60)
        ) as client,
        ThreadPoolExecutor(1) as pool,
        client.session() as session,
    ):
        session.step(HIDDEN_BTH[:, :3])
        link.refuse()
        link.cut()
        step = pool.submit(session.step, HIDDEN_BTH[:, 3:5])
        eventually(lambda: client.statistics().retries >= 2)
        link.accept()
        assert torch.equal(step.result(), EXPECTED_BTH[:, 3:5])
        assert client.statistics().replayed_steps == 0
        assert first.statistics().sessions_opened == 1
