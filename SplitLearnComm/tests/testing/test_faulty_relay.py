"""The relay under raw gRPC: what arrives, how often, and how streams end. Sessions over it: tests/faults."""

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
import psutil
import pytest
import torch

from splitlearn_comm import GRPCComputeServer, InvalidRequestError
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import Cut, Delay, Direction, Drop, Duplicate, FaultyRelay, RelayStatistics, eventually
from splitlearn_comm.testing.faults import Fault

METHOD = "/any.Service/Talk"
MESSAGES = [b"zero", b"one", b"two"]


class Parrot(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Answers each message of any stream with itself, and remembers it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.metadata: dict[str, str | bytes] = {}
        self.num_ended = 0

    def service(self, handler_call_details: Any) -> Any:
        self.metadata = dict(handler_call_details.invocation_metadata)
        return grpc.stream_stream_rpc_method_handler(self._answer)

    def _answer(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            for message in requests:
                self.heard.append(message)
                if message == b"fail":
                    context.set_trailing_metadata((("reason", "asked to"),))
                    context.abort(grpc.StatusCode.DATA_LOSS, "as you wish")
                yield message
            context.set_trailing_metadata((("heard", str(len(self.heard))),))
        finally:
            self.num_ended += 1


@pytest.fixture
def parrot() -> Iterator[tuple[Parrot, str]]:
    parrot = Parrot()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[parrot])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield parrot, f"127.0.0.1:{port}"
    server.stop(None).wait()


class Conversation:
    """One stream, a message at a time."""

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        talk: Any = channel.stream_stream(METHOD, None, None)
        self.call = talk(iter(self._outbox.get, None), metadata=metadata, timeout=20)

    def say(self, message: bytes | None) -> None:
        self._outbox.put(message)

    def ask(self, message: bytes) -> bytes:
        self.say(message)
        return next(self.call)  # type: ignore[no-any-return]


def lost(conversation: Conversation) -> bool:
    """Whether the next thing that comes is the loss of the connection."""
    try:
        next(conversation.call)
    except grpc.RpcError as error:
        return bool(error.code() is grpc.StatusCode.UNAVAILABLE)
    return False


def run(parrot: tuple[Parrot, str], direction: Direction, fault: Fault) -> tuple[list[bytes], bool, RelayStatistics]:
    """Say the messages on one stream, with a fault at the second; what came back, whether it broke, the counts."""
    answers: list[bytes] = []
    with FaultyRelay(parrot[1], {(direction, 1): fault}, method=METHOD) as relay:
        with grpc.insecure_channel(relay.address) as channel:
            conversation = Conversation(channel)
            try:
                for message in MESSAGES:
                    answers.append(conversation.ask(message))
                conversation.say(None)
                answers.extend(conversation.call)
                is_broken = False
            except grpc.RpcError as error:
                is_broken = error.code() is grpc.StatusCode.UNAVAILABLE
        return answers, is_broken, relay.statistics()


def test_without_faults_everything_is_handed_on(parrot: tuple[Parrot, str]) -> None:
    with FaultyRelay(parrot[1], {}, method=METHOD) as relay, grpc.insecure_channel(relay.address) as channel:
        conversation = Conversation(channel, (("who", "a test"),))
        assert [conversation.ask(message) for message in MESSAGES] == MESSAGES
        conversation.say(None)
        assert list(conversation.call) == []
        assert dict(conversation.call.trailing_metadata())["heard"] == "3"
        assert parrot[0].metadata["who"] == "a test"
        statistics = relay.statistics()
    assert (statistics.streams, statistics.requests, statistics.replies) == (1, 3, 3)
    assert (statistics.dropped, statistics.cut, statistics.duplicated, statistics.delayed) == (0, 0, 0, 0)


def test_how_the_server_ends_a_stream_is_handed_on(parrot: tuple[Parrot, str]) -> None:
    with FaultyRelay(parrot[1], {}, method=METHOD) as relay, grpc.insecure_channel(relay.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            Conversation(channel).ask(b"fail")
        failure: Any = caught.value
        assert (failure.code(), failure.details()) == (grpc.StatusCode.DATA_LOSS, "as you wish")
        assert ("reason", "asked to") in [tuple(item) for item in failure.trailing_metadata()]


def test_a_dropped_request_never_arrives(parrot: tuple[Parrot, str]) -> None:
    answers, is_broken, statistics = run(parrot, Direction.TO_SERVER, Drop())
    assert (answers, is_broken, statistics.dropped) == ([b"zero"], True, 1)
    eventually(lambda: parrot[0].num_ended == 1)
    assert parrot[0].heard == [b"zero"]


def test_a_dropped_reply_is_to_a_request_that_arrived(parrot: tuple[Parrot, str]) -> None:
    answers, is_broken, statistics = run(parrot, Direction.TO_CLIENT, Drop())
    assert (answers, is_broken, statistics.dropped) == ([b"zero"], True, 1)
    assert parrot[0].heard == [b"zero", b"one"]


@pytest.mark.parametrize("fault", [Drop(), Cut()])
@pytest.mark.parametrize("direction", Direction)
def test_a_relay_that_closed_holds_no_connection(
    parrot: tuple[Parrot, str], direction: Direction, fault: Fault
) -> None:
    port = int(parrot[1].rpartition(":")[2])

    def num_connections() -> int:
        sockets = psutil.Process().net_connections("tcp")
        return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in sockets)

    gc.disable()  # it would close what is merely forgotten
    try:
        run(parrot, direction, fault)
        assert parrot[0].heard
        eventually(lambda: num_connections() == 0)
    finally:
        gc.enable()


def test_a_cut_behind_a_request_lets_it_arrive_and_no_answer_back(parrot: tuple[Parrot, str]) -> None:
    large = bytes(3_000_000)  # of many frames, the last of which have to arrive too
    schedule = {(Direction.TO_SERVER, 1): Cut()}
    with FaultyRelay(parrot[1], schedule, method=METHOD) as relay, grpc.insecure_channel(relay.address) as channel:
        conversation = Conversation(channel)
        assert conversation.ask(b"zero") == b"zero"
        conversation.say(large)
        assert lost(conversation)
        eventually(lambda: parrot[0].heard == [b"zero", large])
        eventually(lambda: parrot[0].num_ended == 1)
        statistics = relay.statistics()
    assert (statistics.cut, statistics.requests, statistics.replies) == (1, 2, 1)


def test_a_cut_behind_a_reply_lets_that_arrive(parrot: tuple[Parrot, str]) -> None:
    answers, is_broken, statistics = run(parrot, Direction.TO_CLIENT, Cut())
    assert (answers, is_broken, statistics.cut) == ([b"zero", b"one"], True, 1)


def test_a_duplicated_request_is_answered_twice(parrot: tuple[Parrot, str]) -> None:
    answers, is_broken, statistics = run(parrot, Direction.TO_SERVER, Duplicate())
    assert (answers, is_broken) == ([b"zero", b"one", b"one", b"two"], False)
    assert parrot[0].heard == [b"zero", b"one", b"one", b"two"]
    assert (statistics.requests, statistics.replies, statistics.duplicated) == (3, 4, 1)


def test_a_duplicated_reply_is_to_one_request(parrot: tuple[Parrot, str]) -> None:
    answers, is_broken, statistics = run(parrot, Direction.TO_CLIENT, Duplicate())
    assert (answers, is_broken) == ([b"zero", b"one", b"one", b"two"], False)
    assert parrot[0].heard == MESSAGES
    assert statistics.duplicated == 1


@pytest.mark.parametrize("direction", list(Direction))
def test_a_delayed_message_is_late_and_unharmed(parrot: tuple[Parrot, str], direction: Direction) -> None:
    start_s = time.monotonic()
    answers, is_broken, statistics = run(parrot, direction, Delay(0.1))
    assert time.monotonic() - start_s >= 0.1
    assert (answers, is_broken, statistics.delayed) == (MESSAGES, False, 1)


def test_messages_are_counted_over_all_streams(parrot: tuple[Parrot, str]) -> None:
    schedule: dict[tuple[Direction, int], Fault] = {
        (Direction.TO_SERVER, 1): Drop(),
        (Direction.TO_SERVER, 2): Drop(),
        (Direction.TO_CLIENT, 1): Cut(),
    }
    with FaultyRelay(parrot[1], schedule, method=METHOD) as relay, grpc.insecure_channel(relay.address) as channel:
        first = Conversation(channel)
        assert first.ask(b"a") == b"a"
        first.say(b"b")
        assert lost(first)
        second = Conversation(channel)
        second.say(b"b")
        assert lost(second)
        third = Conversation(channel)
        assert third.ask(b"b") == b"b"
        assert lost(third)
        statistics = relay.statistics()
    assert (statistics.streams, statistics.dropped, statistics.cut) == (3, 2, 1)
    assert parrot[0].heard == [b"a", b"b"]


def test_other_methods_are_handed_on_and_not_counted(sum_server: GRPCComputeServer) -> None:
    schedule: dict[tuple[Direction, int], Fault] = {(way, 0): Drop() for way in Direction}
    with FaultyRelay(sum_server.address, schedule) as relay, Client(relay.address) as client:
        assert client.health()
        assert client.get_info().name == "running sum"
        assert torch.equal(client.compute(torch.ones(1, 2, 4)), torch.ones(1, 2, 4).cumsum(1))
        with pytest.raises(InvalidRequestError, match="wrong shape") as caught:
            client.compute(torch.ones(1, 2, 5))
        assert caught.value.request_id
        assert relay.statistics().requests == 0
    relay.close()
