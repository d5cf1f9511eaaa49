"""Sessions that open and end while their host is slow, fails, or is watched by somebody who fails."""

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import torch

from splitlearn_comm import (
    Action,
    ClientLimits,
    GRPCComputeServer,
    GRPCServerConfig,
    HostDirectory,
    Lease,
    Observer,
    RemoteInternalError,
    ServerUnavailableError,
    ServiceInfo,
    Wanted,
)
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.client import ExponentialBackoff
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import RunningSumHost, eventually

ONCE = ExponentialBackoff(max_attempts=1)


class Slow(RunningSumHost):
    """Opens or closes sessions only when it may; says when it is asked to."""

    def __init__(self, *, opens: bool = False, closes: bool = False) -> None:
        super().__init__()
        self._slow = {"open": opens, "close": closes}
        self.asked, self._may_go_on = threading.Event(), threading.Event()

    def go_on(self) -> None:
        self._may_go_on.set()

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        await self._wait("open")
        await super().open_session(session_id, client, adapter)

    async def close_session(self, session_id: str) -> None:
        await self._wait("close")
        await super().close_session(session_id)

    async def _wait(self, what: str) -> None:
        if self._slow[what]:
            self.asked.set()
            assert await asyncio.to_thread(self._may_go_on.wait, 60)


class Counting(HostDirectory):
    """Leases one host, and counts the leases that are held."""

    def __init__(self, host: RunningSumHost) -> None:
        self.host, self.held = host, 0

    def names(self) -> tuple[str, ...]:
        return ("sum",)

    def lease(self, wanted: Wanted) -> Lease:
        self.held += 1
        return Lease(self.host, self._give_back)

    def _give_back(self) -> None:
        self.held -= 1


class Speaker:
    """A stream spoken by hand."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method: Any = channel.stream_stream("/splitlearn.v1.ComputeService/Session", None, None)
        self._call = method(iter(self._outbox.get, None))

    def say(self, request: pb.SessionRequest) -> None:
        self._outbox.put(request.SerializeToString())

    def hear(self) -> pb.SessionResponse:
        return pb.SessionResponse.FromString(next(self._call))

    def open(self, session_id: str, *, resume: bool = False) -> pb.SessionResponse:
        self.say(pb.SessionRequest(session_id=session_id, open=pb.Open(resume=resume)))
        return self.hear()

    def end(self) -> None:
        self._call.cancel()
        self._outbox.put(None)


@contextmanager
def speaking(address: str) -> Iterator[tuple[Speaker, Speaker]]:
    with grpc.insecure_channel(address) as channel:
        speakers = Speaker(channel), Speaker(channel)
        try:
            yield speakers
        finally:
            for speaker in speakers:
                speaker.end()


def forward() -> pb.SessionRequest:
    tensor = pb.TensorData(data=torch.ones(4).numpy().tobytes(), shape=(1, 1, 4), dtype=pb.DTYPE_FLOAT32)
    return pb.SessionRequest(step_id=1, forward=pb.Forward(tensor=tensor))


def test_a_name_that_is_opened_again_while_it_is_being_closed_is_another_session() -> None:
    directory = Counting(host := Slow(closes=True))
    with GRPCComputeServer(directory, port=0) as server, speaking(server.address) as (first, second):
        first.open("name")
        first.say(pb.SessionRequest(step_id=1, close=pb.Close()))
        assert host.asked.wait(60)
        second.say(pb.SessionRequest(session_id="name", open=pb.Open()))
        host.go_on()
        assert second.hear().WhichOneof("result") == "opened"
        assert first.hear().WhichOneof("result") == "done"
        second.say(forward())
        assert second.hear().WhichOneof("result") == "tensor"
        assert directory.held == host.num_sessions == 1
    assert directory.held == host.num_sessions == 0


def test_a_session_that_expires_while_it_is_opened_is_left_nowhere() -> None:
    directory = Counting(host := Slow(opens=True))
    config = GRPCServerConfig(idle_session_timeout_s=0.05)
    with GRPCComputeServer(directory, port=0, config=config) as server, speaking(server.address) as (first, _):
        first.say(pb.SessionRequest(session_id="name", open=pb.Open()))
        assert host.asked.wait(60)
        eventually(lambda: server.statistics().sessions_expired == 1)
        host.go_on()
        assert first.hear().error.kind == "SessionNotFoundError"
        eventually(lambda: directory.held == host.num_sessions == 0)


class FailingInfo(RunningSumHost):
    def get_info(self) -> ServiceInfo:
        raise RuntimeError("the process ended before it said what it serves")


def test_a_lease_is_given_back_where_the_host_cannot_say_what_it_is() -> None:
    directory = Counting(FailingInfo())
    with GRPCComputeServer(directory, port=0) as server, Client(server.address, retry=ONCE) as client:
        for call in (client.session, lambda: client.compute(torch.ones(1, 1, 4)), client.get_info):
            with pytest.raises(RemoteInternalError):
                call()
        assert directory.held == 0


class FailingObserver(Observer):
    """Fails whenever it is told of a session."""

    def on_session_opened(self) -> None:
        raise KeyError("a full disk")

    def on_session_closed(self, how: str) -> None:
        raise KeyError("a renamed label")


def test_an_observer_that_fails_disturbs_nobody() -> None:
    host, config = RunningSumHost(), GRPCServerConfig(idle_session_timeout_s=1.0)
    server = GRPCComputeServer(host, port=0, config=config, observer=FailingObserver())
    with server as running, Client(running.address) as client:
        for _ in range(2):  # the second expires too: who looks after them is still there
            session = client.session()
            assert session.step(torch.ones(1, 1, 4)).shape == (1, 1, 4)
            eventually(lambda: host.num_sessions == 0)
    assert not server.is_running


def test_one_host_that_is_slow_to_close_holds_up_no_other_session() -> None:
    host, config = Slow(closes=True), GRPCServerConfig(idle_session_timeout_s=0.7)
    with GRPCComputeServer(host, port=0, config=config) as server, Client(server.address) as client:
        sessions = [client.session()]
        assert host.asked.wait(60)
        sessions.append(client.session())
        eventually(lambda: server.statistics().sessions_expired == 2)
        host.go_on()
        eventually(lambda: host.num_sessions == 0)


class Gone(RunningSumHost):
    """What computed is gone in the middle of a step."""

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        raise ServerUnavailableError("the process of the model ended")


def test_a_session_whose_model_is_gone_is_over_at_the_server() -> None:
    directory = Counting(host := Gone())
    with GRPCComputeServer(directory, port=0) as server, speaking(server.address) as (first, second):
        first.open("name")
        first.say(forward())
        assert first.hear().error.kind == "ServerUnavailableError"
        assert second.open("name", resume=True).error.kind == "SessionNotFoundError"
        assert directory.held == host.num_sessions == 0


def test_only_a_resume_that_succeeds_is_free() -> None:
    limits = ClientLimits(requests_per_s=0.001)
    config = GRPCServerConfig(client_limits=limits)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server:
        with speaking(server.address) as (first, second):
            kinds = [first.open("nobody", resume=True).error.kind]
            second.say(pb.SessionRequest(session_id="nobody", open=pb.Open(resume=True)))
            kinds.append(second.hear().error.kind)
        with speaking(server.address) as (third, _):
            third.say(pb.SessionRequest(session_id="new", open=pb.Open()))
            kinds.append(third.hear().error.kind)
    assert kinds[0] == "SessionNotFoundError"
    assert "ResourceExhaustedError" in kinds[1:]
