"""Sessions whose clients do nothing while their server stops."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    ResourceExhaustedError,
    ServerUnavailableError,
)
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import Forward
from splitlearn_comm.protocol import SESSION
from splitlearn_comm.testing import RunningSumHost, eventually

TOKENS = torch.arange(40.0).reshape(1, 10, 4)
FIRST, REST = TOKENS[:, :4], TOKENS[:, 4:]
EXPECTED = TOKENS.cumsum(1)[:, 4:]


def started(config: GRPCServerConfig | None = None) -> GRPCComputeServer:
    server = GRPCComputeServer(RunningSumHost(), port=0, config=config)
    server.start(block=False)
    return server


def test_they_move_with_their_state_while_nobody_does_a_step() -> None:
    first = started()
    with GRPCComputeServer(RunningSumHost(), port=0) as second:
        with GRPCComputeClient(AddressBook([first.address, second.address], in_order=True)) as client:
            sessions = [client.session() for _ in range(8)]
            for session in sessions:
                session.step(FIRST)
            began_s = time.monotonic()
            first.stop(grace_s=120)
            assert time.monotonic() - began_s < 30
            for session in sessions:
                assert torch.equal(session.step(REST), EXPECTED)
                session.close()
            counted = client.statistics()
        assert (counted.moves, counted.failovers, counted.replayed_steps) == (8, 0, 0)
        assert second.statistics().sessions_opened == 8
        eventually(lambda: second.statistics().sessions_open == 0)


def test_they_do_with_asyncio_too() -> None:
    async def main(first: GRPCComputeServer, second: str) -> None:
        async with AsyncComputeClient(AddressBook([first.address, second], in_order=True)) as client:
            sessions = [client.session() for _ in range(8)]
            for session in sessions:
                await session.step(FIRST)
            await asyncio.to_thread(first.stop, grace_s=120)
            for session in sessions:
                assert torch.equal(await session.step(REST), EXPECTED)
                await session.close()
            counted = client.statistics()
            assert (counted.moves, counted.failovers, counted.replayed_steps) == (8, 0, 0)

    with GRPCComputeServer(RunningSumHost(), port=0) as second:
        asyncio.run(main(started(), second.address))
        eventually(lambda: second.statistics().sessions_open == 0)


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.15])
def test_a_step_in_the_middle_of_it_is_done_once(pause_s: float) -> None:
    """Whatever comes first, the step, the call to leave or the move, the sums are right."""
    hidden = torch.ones(1, 36, 4)
    for _ in range(3):
        first = started()
        with (
            GRPCComputeServer(RunningSumHost(), port=0) as second,
            GRPCComputeClient(AddressBook([first.address, second.address], in_order=True)) as client,
            ThreadPoolExecutor(1) as pool,
            client.session() as session,
        ):
            stopping = None
            for index in range(12):
                assert torch.equal(session.step(hidden[:, :3]), hidden.cumsum(1)[:, 3 * index : 3 * index + 3])
                if index == 5:
                    stopping = pool.submit(first.stop, grace_s=120)
                if index > 5:
                    time.sleep(pause_s)
            assert stopping is not None
            stopping.result()
            counted = client.statistics()
            assert (counted.moves, counted.replayed_steps) == (1, 0)


def test_a_session_or_client_closed_meanwhile_holds_nobody_up() -> None:
    first = started()
    with GRPCComputeServer(RunningSumHost(), port=0) as second, ThreadPoolExecutor(1) as pool:
        with GRPCComputeClient(AddressBook([first.address, second.address], in_order=True)) as client:
            sessions = [client.session() for _ in range(8)]
            for session in sessions:
                session.step(FIRST)
            stopping = pool.submit(first.stop, grace_s=120)
            for session in sessions[:4]:
                session.close()
        stopping.result(timeout=30)


def test_a_client_that_does_not_come_is_waited_for_as_long_as_was_said() -> None:
    first = started(GRPCServerConfig(drain_idle_timeout_s=0.4))
    outbox: SimpleQueue[bytes | None] = SimpleQueue()
    inbox = Inbox(1 << 20)
    with grpc.insecure_channel(first.address) as channel:
        answers = channel.stream_stream(SESSION)(iter(outbox.get, None))
        step = steps.encode_step(1, 0, Forward(FIRST))
        assert isinstance(step, bytes)
        for message in (steps.encode_open(steps.Open("passive", can_move=True)), step):
            outbox.put(message)
            answer = inbox.answer(next(answers))
            assert answer is not None
            assert answer.error is None
        began_s = time.monotonic()
        first.stop(grace_s=120)
        assert 0.4 <= time.monotonic() - began_s < 30
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        outbox.put(None)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(ended.value.trailing_metadata())["splitlearn-draining"] == "1"


class Full(RunningSumHost):
    """Has room for nobody."""

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        raise ResourceExhaustedError("no room here")


def test_a_session_that_nobody_takes_does_not_hold_a_server_for_ever() -> None:
    first = started(GRPCServerConfig(drain_idle_timeout_s=0.4))
    with (
        GRPCComputeServer(Full(), port=0) as full,
        GRPCComputeClient(AddressBook([first.address, full.address], in_order=True)) as client,
        client.session() as session,
    ):
        session.step(FIRST)
        began_s = time.monotonic()
        first.stop(grace_s=120)
        assert time.monotonic() - began_s < 30
        with pytest.raises((ServerUnavailableError, ResourceExhaustedError)):
            session.step(REST)
        assert client.statistics().moves == 0
