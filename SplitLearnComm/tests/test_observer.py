"""What a server and both kinds of client tell an observer, over a real connection."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    AuthenticationError,
    CommError,
    ComputeFunction,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    Observer,
    Together,
)
from splitlearn_comm.protocol import COMPUTE, GET_SERVICE_INFO, HEALTH_CHECK, SESSION
from splitlearn_comm.testing import Failing, RecordedCall, RecordingObserver, RunningSumHost, eventually

OK = grpc.StatusCode.OK
HIDDEN = torch.ones(1, 3, 4)
LARGE = torch.ones(20_000, 12, 4)
"""3.8 MB of float32: several pieces."""
Act = Callable[[str, Observer | None], None]


def act_synchronously(address: str, observer: Observer | None) -> None:
    with GRPCComputeClient(address, observer=observer, timings=True) as client:
        client.compute(HIDDEN)
        with client.session() as session:
            session.step(HIDDEN)
            session.crop(1)
            with pytest.raises(InvalidRequestError):
                session.step(torch.ones(1, 3, 5))


def act_asynchronously(address: str, observer: Observer | None) -> None:
    async def act() -> None:
        async with AsyncComputeClient(address, observer=observer, timings=True) as client:
            await client.compute(HIDDEN)
            async with client.session() as session:
                await session.step(HIDDEN)
                await session.crop(1)
                with pytest.raises(InvalidRequestError):
                    await session.step(torch.ones(1, 3, 5))

    asyncio.run(act())


both_clients = pytest.mark.parametrize("act", [act_synchronously, act_asynchronously])


def ended(observer: RecordingObserver, method: str) -> RecordedCall:
    """The one call of a method, once it has ended."""
    (call,) = [call for call in observer.calls if call.method == method]
    eventually(lambda: call.summary is not None)
    return call


@both_clients
def test_a_server_tells_of_calls_and_steps(act: Act) -> None:
    observer = RecordingObserver()
    with GRPCComputeServer(RunningSumHost(), port=0, observer=observer) as server:
        act(server.address, None)
        compute, session = ended(observer, COMPUTE), ended(observer, SESSION)
    assert compute.summary is not None
    assert compute.summary.code is OK
    assert compute.summary.seconds > 0
    assert min(compute.summary.bytes_received, compute.summary.bytes_sent) > HIDDEN.nbytes
    assert compute.steps == []
    assert [(step.action, step.code, step.step_id) for step in session.steps] == [
        ("open", OK, 0),
        ("forward", OK, 1),
        ("crop", OK, 2),
        ("forward", grpc.StatusCode.INVALID_ARGUMENT, 3),
        ("close", OK, session.steps[-1].step_id),
    ]
    forward, refused = session.steps[1], session.steps[3]
    assert forward.seconds > forward.compute_s > 0
    assert min(forward.bytes_received, forward.bytes_sent) > HIDDEN.nbytes
    assert refused.compute_s == 0
    assert session.summary is not None
    assert session.summary.code is OK
    assert (observer.num_opened, observer.closed) == (1, ["closed"])


@both_clients
def test_a_client_tells_of_calls_and_steps(act: Act) -> None:
    observer = RecordingObserver()
    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        act(server.address, observer)
    compute, session = observer.calls
    assert (compute.method, session.method) == (COMPUTE, SESSION)
    assert compute.summary is not None
    assert compute.summary.code is OK
    assert min(compute.summary.bytes_received, compute.summary.bytes_sent) > HIDDEN.nbytes
    assert [(step.action, step.code, step.step_id) for step in session.steps] == [
        ("forward", OK, 1),
        ("crop", OK, 2),
        ("forward", grpc.StatusCode.INVALID_ARGUMENT, 3),
    ]
    forward = session.steps[0]
    assert forward.seconds > forward.compute_s > 0
    assert min(forward.bytes_received, forward.bytes_sent) > HIDDEN.nbytes
    assert session.summary is not None
    assert session.summary.code is OK
    assert session.summary.seconds > forward.seconds


def test_the_pieces_of_a_large_tensor_are_counted() -> None:
    observer = RecordingObserver()
    with (
        GRPCComputeServer(RunningSumHost(), port=0, observer=observer) as server,
        GRPCComputeClient(server.address) as client,
        client.session() as session,
    ):
        session.step(LARGE)
        session.step(LARGE[:, :1])
    forwards = [step for step in observer.steps if step.action == "forward"]
    assert LARGE.nbytes < forwards[0].bytes_received < LARGE.nbytes * 1.01
    assert LARGE.nbytes / 12 < forwards[1].bytes_received < LARGE.nbytes / 11


def test_calls_that_are_refused_or_fail_are_told_of() -> None:
    observer = RecordingObserver()
    config = GRPCServerConfig(tokens={"alice": "alices-own-long-token"})
    with GRPCComputeServer(Failing(), port=0, config=config, observer=observer) as server:
        with GRPCComputeClient(server.address) as client, pytest.raises(AuthenticationError):
            client.get_info()
        with GRPCComputeClient(server.address, token="alices-own-long-token") as client:
            assert client.health()
            with pytest.raises(CommError):
                client.compute(HIDDEN)
    codes = {method: ended(observer, method).summary.code for method in (GET_SERVICE_INFO, HEALTH_CHECK, COMPUTE)}  # type: ignore[union-attr]
    assert codes == {
        GET_SERVICE_INFO: grpc.StatusCode.UNAUTHENTICATED,
        HEALTH_CHECK: OK,
        COMPUTE: grpc.StatusCode.INTERNAL,
    }


def test_what_is_not_served_is_not_told_of() -> None:
    observer = RecordingObserver()
    with (
        GRPCComputeServer(RunningSumHost(), port=0, observer=observer) as server,
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError),
    ):
        channel.unary_unary("/made.up/Name")(b"", timeout=20)
    assert observer.calls == []  # names that anybody may make up become no labels


def test_a_session_that_is_left_ends_by_itself() -> None:
    observer = RecordingObserver()
    config = GRPCServerConfig(detached_session_timeout_s=0.1)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config, observer=observer) as server:
        client = GRPCComputeClient(server.address)
        client.session()
        client.close()
        eventually(lambda: observer.closed == ["expired"])
        # Which of the two comes first when a client leaves, the end of its stream or the end of the call, is gRPC's.
        left = (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)
        assert ended(observer, SESSION).summary.code in left  # type: ignore[union-attr]
        with GRPCComputeClient(server.address) as client:
            client.session()
            server.stop()
    assert observer.closed == ["expired", "stopped"]


def test_a_session_that_its_host_broke_is_told_of_as_failed() -> None:
    class Broken(RunningSumHost):
        async def run_step(self, session_id: str, action: object) -> torch.Tensor | None:
            raise RuntimeError

    observer = RecordingObserver()
    with (
        GRPCComputeServer(Broken(), port=0, observer=observer) as server,
        GRPCComputeClient(server.address) as client,
        client.session() as session,
        pytest.raises(CommError),
    ):
        session.step(HIDDEN)
    assert (observer.num_opened, observer.closed) == (1, ["failed"])


def test_a_server_that_is_gone_ends_step_and_session_of_a_client() -> None:
    observer = RecordingObserver()
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as server,
        GRPCComputeClient(server.address, observer=observer, timeout_s=2) as client,
        client.session() as session,
    ):
        session.step(HIDDEN)
        server.stop(grace_s=0)
        with pytest.raises(CommError) as caught:
            session.step(HIDDEN)
    (call,) = observer.calls
    assert [step.code for step in call.steps] == [OK, caught.value.code]
    assert call.summary is not None
    assert call.summary.code is caught.value.code is not OK


@pytest.mark.parametrize("act", [act_synchronously, act_asynchronously])
def test_what_an_observer_sends_along_arrives(act: Act) -> None:
    observer = RecordingObserver()
    with GRPCComputeServer(RunningSumHost(), port=0, observer=observer) as server:
        act(server.address, RecordingObserver(sends=[("x-mine", "seven")]))
    received = {call.method: dict(call.received).get("x-mine") for call in observer.calls}
    assert received == {COMPUTE: "seven", SESSION: "seven"}


def test_several_observers_are_told_alike() -> None:
    first, second = RecordingObserver([("a", "1")]), RecordingObserver([("b", "2")])
    seen = RecordingObserver()
    with GRPCComputeServer(RunningSumHost(), port=0, observer=Together(first, second, seen)) as server:
        act_synchronously(server.address, Together(RecordingObserver([("a", "1")]), RecordingObserver([("b", "2")])))
        eventually(lambda: all(call.summary is not None for call in seen.calls))
    assert first.steps == second.steps == seen.steps
    assert [call.summary for call in first.calls] == [call.summary for call in second.calls]
    assert (first.num_opened, first.closed) == (second.num_opened, second.closed) == (1, ["closed"])
    assert {"a": "1", "b": "2"}.items() <= dict(seen.calls[0].received).items()


class HeldUp(ComputeFunction):
    """Computes, on a thread, when it is let."""

    def __init__(self) -> None:
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        self.has_begun.set()
        self.may_go_on.wait(60)
        return tensor


def test_a_step_that_waits_for_another_says_that_it_waited() -> None:
    """The first step holds the thread; the second has to wait, which is not what it computes."""
    pause_s = 0.1
    function, observer = HeldUp(), RecordingObserver()
    with (
        GRPCComputeServer(function, port=0, observer=observer) as server,
        GRPCComputeClient(server.address, timings=True) as client,
        ThreadPoolExecutor(2) as pool,
        client.session() as first,
        client.session() as second,
    ):
        holding = pool.submit(first.step, HIDDEN)
        assert function.has_begun.wait(60)
        bytes_before = server.statistics().bytes_received
        waiting = pool.submit(second.step, HIDDEN)
        eventually(lambda: server.statistics().bytes_received > bytes_before)
        time.sleep(pause_s)  # what is measured
        function.may_go_on.set()
        holding.result(), waiting.result()
        breakdown = second.breakdown
    assert breakdown is not None
    # A little less than the pause: the message is counted before its turn is asked for.
    assert breakdown.queue_s > pause_s / 2
    assert breakdown.compute_s < breakdown.total_s - pause_s / 2
    told = max(step.queue_s for call in observer.calls for step in call.steps)
    assert pause_s / 2 < told < breakdown.total_s
