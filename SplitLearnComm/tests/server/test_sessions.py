"""The session stream as it is on the wire, spoken by hand."""

import queue
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch

from splitlearn_comm import (
    Action,
    CommError,
    GRPCComputeServer,
    GRPCServerConfig,
    MessageTooLargeError,
    SessionNotFoundError,
    TensorCodec,
)
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import Gated, RunningSumHost, Tenfold, eventually

CODEC = TensorCodec()


class RawStream:
    def __init__(self, channel: grpc.Channel) -> None:
        self.outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method = channel.stream_stream("/splitlearn.v1.ComputeService/Session", None, None)
        self.call = method(iter(self.outbox.get, None))

    def exchange_bytes(self, data: bytes) -> bytes:
        self.outbox.put(data)
        return next(self.call)

    def exchange(self, request: pb.SessionRequest) -> pb.SessionResponse:
        return pb.SessionResponse.FromString(self.exchange_bytes(request.SerializeToString()))

    def open(self, session_id: str, resume: bool = False) -> pb.SessionResponse:
        return self.exchange(pb.SessionRequest(session_id=session_id, open=pb.Open(resume=resume)))

    def end(self) -> None:
        self.call.cancel()
        self.outbox.put(None)


Streams = Callable[[], RawStream]


@pytest.fixture
def streams(sum_server: GRPCComputeServer) -> Iterator[Streams]:
    opened: list[RawStream] = []
    with grpc.insecure_channel(sum_server.address) as channel:

        def make() -> RawStream:
            opened.append(RawStream(channel))
            return opened[-1]

        yield make
        for stream in opened:
            stream.end()


def forward(step_id: int, position: int, tensor: torch.Tensor | None = None) -> pb.SessionRequest:
    data = CODEC.encode(torch.ones(1, 2, 4) if tensor is None else tensor)
    return pb.SessionRequest(step_id=step_id, position=position, forward=pb.Forward(tensor=data))


def crop(step_id: int, position: int, num_tokens: int) -> pb.SessionRequest:
    return pb.SessionRequest(step_id=step_id, position=position, crop=pb.Crop(num_tokens=num_tokens))


def refused(response: pb.SessionResponse) -> tuple[int, str]:
    assert response.WhichOneof("result") == "error"
    assert response.error.message
    assert response.error.request_id
    return response.error.code, response.error.kind


def last_sum(response: pb.SessionResponse) -> float:
    assert response.WhichOneof("result") == "tensor", response
    return CODEC.decode(response.tensor)[0, -1, 0].item()


def test_a_lost_answer_is_repeated_and_the_cache_is_not(sum_server: GRPCComputeServer, streams: Streams) -> None:
    first, session_id = streams(), uuid.uuid4().hex
    assert first.open(session_id).opened.max_message_bytes == 256 * 1024 * 1024
    first.exchange(forward(1, 0))
    lost = first.exchange_bytes(forward(2, 2).SerializeToString())
    first.end()
    second = streams()
    resumed = second.open(session_id, resume=True)
    assert (resumed.step_id, resumed.position) == (2, 4)
    for _ in range(2):
        assert second.exchange_bytes(forward(2, 2).SerializeToString()) == lost
    assert last_sum(second.exchange(forward(3, 4))) == 6
    assert (sum_server.statistics().steps, sum_server.statistics().replays) == (3, 2)


def test_a_lost_crop_removes_tokens_once(streams: Streams) -> None:
    stream = streams()
    stream.open("s")
    stream.exchange(forward(1, 0))
    for _ in range(3):
        assert stream.exchange(crop(2, 2, 1)).position == 1
    assert last_sum(stream.exchange(forward(3, 1))) == 3


@pytest.mark.parametrize(
    ("step_id", "position", "said"),
    [
        (1, 0, "step 1 is repeated too late: step 3 is done"),
        (0, 0, "step 0 is repeated too late: step 3 is done"),
        (5, 6, "step 5 is ahead of its turn: step 3 is done, expected 4"),
        (4, 5, "expects 5 tokens in the cache, the session has 6"),
        (3, 6, "expects 6 tokens in the cache, the session has 4"),
    ],
)
def test_steps_out_of_order_are_refused_with_both_numbers(
    streams: Streams, step_id: int, position: int, said: str
) -> None:
    stream = streams()
    stream.open("s")
    for number in range(3):
        stream.exchange(forward(number + 1, 2 * number))
    response = stream.exchange(forward(step_id, position))
    assert refused(response) == (9, "StepOrderError")
    assert said in response.error.message
    assert last_sum(stream.exchange(forward(4, 6))) == 8


def test_a_refused_step_leaves_its_number_free(streams: Streams) -> None:
    stream = streams()
    stream.open("s")
    assert refused(stream.exchange(forward(1, 0, torch.ones(1, 2, 3)))) == (3, "InvalidRequestError")
    assert refused(stream.exchange(crop(1, 0, 1))) == (3, "InvalidRequestError")
    assert last_sum(stream.exchange(forward(1, 0))) == 2


def test_nonsense_is_refused_and_the_stream_goes_on(streams: Streams) -> None:
    stream = streams()
    assert refused(stream.exchange(forward(1, 0))) == (3, "InvalidRequestError")
    assert refused(pb.SessionResponse.FromString(stream.exchange_bytes(b"\xff\xff"))) == (3, "InvalidRequestError")
    assert refused(stream.exchange(pb.SessionRequest(step_id=1))) == (3, "InvalidRequestError")
    assert refused(stream.open("")) == (3, "InvalidRequestError")
    assert refused(stream.open("unknown", resume=True)) == (5, "SessionNotFoundError")
    assert stream.exchange(pb.SessionRequest(close=pb.Close())).WhichOneof("result") == "done"
    stream.open("s")
    assert refused(stream.open("t")) == (3, "InvalidRequestError")
    assert last_sum(stream.exchange(forward(1, 0))) == 2


def test_an_open_whose_answer_was_lost_may_be_repeated(sum_server: GRPCComputeServer, streams: Streams) -> None:
    first, second, third = streams(), streams(), streams()
    first.open("s")
    assert second.open("s").WhichOneof("result") == "opened"
    assert last_sum(second.exchange(forward(1, 0))) == 2
    assert refused(third.open("s")) == (3, "InvalidRequestError"), "by now it is somebody's"
    assert sum_server.statistics().sessions_opened == 1


def test_the_old_stream_has_no_say_once_another_took_over(streams: Streams) -> None:
    old, new = streams(), streams()
    old.open("s")
    old.exchange(forward(1, 0))
    new.open("s", resume=True)
    assert refused(old.exchange(forward(2, 2))) == (5, "SessionNotFoundError")
    assert refused(old.exchange(pb.SessionRequest(close=pb.Close()))) == (5, "SessionNotFoundError")
    assert last_sum(new.exchange(forward(2, 2))) == 4


def test_a_step_that_runs_while_its_connection_breaks_is_done_once() -> None:
    function = Gated()
    with GRPCComputeServer(function, port=0) as server, grpc.insecure_channel(server.address) as channel:
        first, second = RawStream(channel), RawStream(channel)
        first.open("s")
        first.outbox.put(forward(1, 0).SerializeToString())
        function.entered.acquire()
        first.end()
        received = server.statistics().bytes_received
        with ThreadPoolExecutor(1) as pool:
            resumed = pool.submit(second.open, "s", resume=True)
            eventually(lambda: server.statistics().bytes_received > received)
            function.gate.set()
            assert resumed.result().step_id == 1
        assert second.exchange(forward(1, 0)).position == 2
        assert (server.statistics().steps, server.statistics().replays) == (1, 1)
        assert not function.entered.acquire(blocking=False)
        second.end()


def test_an_idle_session_ends_and_its_cache_with_it() -> None:
    host = RunningSumHost()
    config = GRPCServerConfig(idle_session_timeout_s=1.0)
    with GRPCComputeServer(host, port=0, config=config) as server, Client(server.address) as client:
        session = client.session()
        session.step(torch.ones(1, 2, 4))
        eventually(lambda: server.statistics().sessions_expired == 1)
        assert (host.num_sessions, server.statistics().sessions_open) == (0, 0)
        with pytest.raises(SessionNotFoundError, match=r"expired .* limit is 1 s .* open a new session") as caught:
            session.step(torch.ones(1, 1, 4))
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        session.close()


CLIENT_THAT_WAITS = """
import sys, time, torch
from splitlearn_comm.quickstart import Client
session = Client(sys.argv[1]).session()
session.step(torch.ones(1, 2, 4))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_client_that_is_killed_leaves_nothing_behind() -> None:
    host = RunningSumHost()
    config = GRPCServerConfig(detached_session_timeout_s=0.2)
    with GRPCComputeServer(host, port=0, config=config) as server:
        command = [sys.executable, "-c", CLIENT_THAT_WAITS, server.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert (host.num_sessions, server.statistics().sessions_open) == (1, 1)
            process.kill()
        eventually(lambda: server.statistics().sessions_open == 0)
        assert host.num_sessions == 0


def test_a_session_with_a_client_is_not_ended_by_the_short_timeout() -> None:
    config = GRPCServerConfig(detached_session_timeout_s=0.05)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server, Client(server.address) as client:
        kept = client.session()
        kept.step(torch.ones(1, 1, 4))
        with grpc.insecure_channel(server.address) as channel:
            stream = RawStream(channel)
            stream.open("left")
            stream.end()
            eventually(lambda: server.statistics().sessions_expired == 1)
        assert kept.step(torch.ones(1, 1, 4))[0, 0, 0] == 2


def test_an_answer_too_large_ends_the_session_and_says_so() -> None:
    config = GRPCServerConfig(max_message_bytes=10_000)
    with GRPCComputeServer(Tenfold(), port=0, config=config) as server, Client(server.address) as client:
        with client.session() as session:
            with pytest.raises(MessageTooLargeError, match=r"answer has \d+ bytes.* at most 10000.* closed"):
                session.step(torch.ones(1, 500))
            with pytest.raises(SessionNotFoundError, match="too large to send"):
                session.step(torch.ones(1, 1))
        with pytest.raises(MessageTooLargeError, match=r"answer has \d+ bytes.* at most 10000"):
            client.compute(torch.ones(500))
        assert server.statistics().sessions_open == 0


def test_stopping_lets_the_running_step_finish_and_closes_the_rest() -> None:
    function = Gated()
    with GRPCComputeServer(function, port=0) as server, Client(server.address) as client:
        idle, busy = client.session(), client.session()
        with ThreadPoolExecutor(2) as pool:
            step = pool.submit(busy.step, torch.ones(1, 1))
            function.entered.acquire()
            stop = pool.submit(server.stop)
            eventually(lambda: not server.is_running)
            threading.Timer(0.05, function.gate.set).start()
            assert step.result().item() == 1
            stop.result()
        assert server.statistics().sessions_open == 0
        for session in (idle, busy):
            session.close()


class Unspeakable(RunningSumHost):
    """Does a step and then gives an answer that cannot be sent."""

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        output = await super().run_step(session_id, action)
        assert output is not None
        return output.to(torch.complex64) if float(output.flatten()[-1]) == 11.0 else output


def test_a_step_whose_answer_cannot_be_sent_ends_its_session() -> None:
    """It was done: were its number free again, its tokens would be counted and nobody would know."""
    token = torch.ones(1, 1, 4)
    with GRPCComputeServer(Unspeakable(), port=0) as server, Client(server.address, replay_bytes=0) as client:
        session = client.session()
        session.step(token)
        with pytest.raises(CommError):
            session.step(10 * token)
        with pytest.raises(SessionNotFoundError, match="could not be put into a message"):
            session.step(-9 * token)


def test_a_refused_open_makes_nobody_the_owner_of_anothers_session() -> None:
    config = GRPCServerConfig(tokens={"alice": "a" * 32, "mallory": "m" * 32})
    token = torch.ones(1, 1, 4)
    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
        Client(server.address, token="a" * 32) as client,
        client.session() as session,
        grpc.insecure_channel(server.address) as channel,
    ):
        session.step(token)
        method = channel.stream_stream("/splitlearn.v1.ComputeService/Session", None, None)
        for resume in (False, True, True):
            request = pb.SessionRequest(session_id=session.session_id, open=pb.Open(resume=resume))
            answers = method(iter([request.SerializeToString()]), metadata=(("authorization", f"Bearer {'m' * 32}"),))
            assert pb.SessionResponse.FromString(next(answers)).HasField("error")
        assert float(session.step(token)[0, 0, 0]) == 2.0


def test_a_stream_that_has_to_end_says_why_in_an_answer_too() -> None:
    config = GRPCServerConfig(max_message_bytes=1000)
    piece = pb.SessionRequest(chunk=pb.TensorChunk(data=b"x" * 900, total_bytes=900)).SerializeToString()
    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = channel.stream_stream("/splitlearn.v1.ComputeService/Session", None, None)(iter([piece] * 2000))
        answer = pb.SessionResponse.FromString(next(call))
        with pytest.raises(grpc.RpcError) as ended:
            next(call)
    assert answer.error.kind == "ResourceExhaustedError"
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.error.request_id in str(ended.value.trailing_metadata())
