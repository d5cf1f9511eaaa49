"""The other side is not what it should be: another model, no server, a dead one, a wrong step, a lost client."""

import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from splitlearn import SplitModelForCausalLM
from splitlearn_comm import (
    FingerprintMismatchError,
    InvalidRequestError,
    ResourceExhaustedError,
    ServerUnavailableError,
    SessionNotFoundError,
    StepOrderError,
    protocol,
)
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import Forward
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing.waiting import eventually
from splitlearn_core import TrunkMismatchError
from tests.support.checkpoints import WEIGHTS, change_one_value, save_tiny
from tests.support.served import Served, assert_refused, assert_says
from tests.support.trunk_process import TrunkProcess

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("serves_on")


H = 32


def test_two_checkpoints_that_differ_in_one_weight_value(trunks: TrunkProcess, served: Served, tmp_path: Path) -> None:
    shutil.copytree(served.directory, tmp_path / "other")
    change_one_value(tmp_path / "other")
    assert (tmp_path / "other" / WEIGHTS).stat().st_size == (served.directory / WEIGHTS).stat().st_size
    before = trunks.statistics(served.address)
    with pytest.raises(TrunkMismatchError) as caught:
        SplitModelForCausalLM.from_pretrained(str(tmp_path / "other"), trunk=served.address)
    assert_says(caught.value, "another checkpoint", "fingerprint", str(tmp_path / "other"), "same weights")
    after = trunks.statistics(served.address)
    assert (after["computes"], after["sessions_opened"]) == (before["computes"], before["sessions_opened"])


def test_a_fingerprint_that_a_call_states(served: Served) -> None:
    refused = (FingerprintMismatchError, grpc.StatusCode.FAILED_PRECONDITION)
    own = served.client.get_info().fingerprint
    assert own is not None
    words = ("0" * 64, own, "same checkpoint")
    assert_refused(*refused, lambda: served.client.session(expected_fingerprint="0" * 64), *words)
    hidden_BTH = torch.zeros(1, 1, H)
    assert_refused(*refused, lambda: served.client.compute(hidden_BTH, expected_fingerprint="0" * 64), *words)
    assert served.client.compute(hidden_BTH, expected_fingerprint=own).shape == (1, 1, H)


def test_the_trunk_of_another_architecture(served: Served, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    with pytest.raises(TrunkMismatchError) as caught:
        SplitModelForCausalLM.from_pretrained(str(tmp_path), trunk=served.address)
    assert_says(caught.value, "gpt2", "llama", "name the model that the server hosts")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_server_not_there(served: Served) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    for call in (
        lambda: SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=nowhere),
        lambda: Client(nowhere).compute(torch.ones(1)),
        lambda: Client(nowhere).session(),
        lambda: Client([nowhere]).compute(torch.ones(1)),
    ):
        with pytest.raises(ServerUnavailableError) as caught:
            call()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert_says(caught.value, f"nothing listens at {nowhere}", "is the server started")


def test_something_else_listens(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer_like_a_web_server() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=answer_like_a_web_server)
        thread.start()
        with pytest.raises(ServerUnavailableError) as caught:
            SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=address)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert_says(caught.value, address)


@pytest.mark.slow
def test_server_killed_in_the_middle_of_a_session(served: Served) -> None:
    with TrunkProcess() as process:
        address = process.start(served.directory)
        split = SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=address)
        prompt = torch.ones(1, 4, dtype=torch.long)
        output = split(prompt, use_cache=True)
        process.kill()
        # Bounded: a wait without end would be a hang of this test.
        with pytest.raises(ServerUnavailableError) as caught:
            split(prompt[:, :1], past_key_values=output.past_key_values)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert_says(caught.value, address, "lost in the middle of session", "position 4", "open a new session")
        with pytest.raises(ServerUnavailableError):
            split.generate(prompt, max_new_tokens=2)
        output.past_key_values.close()
        split.trunk.close()


class RawStream:
    """One session stream by hand: what another implementation of the protocol might send."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._messages: list[bytes] = []
        self._ready = threading.Semaphore(0)
        self._answers: Any = self._channel.stream_stream(protocol.SESSION, None, None)(self._outgoing())

    def _outgoing(self) -> Iterator[bytes]:
        while self._ready.acquire() and self._messages:
            yield self._messages.pop(0)

    def ask(self, message: bytes) -> steps.Answer:
        self._messages.append(message)
        self._ready.release()
        answer = Inbox(1 << 20).answer(next(self._answers))
        assert answer is not None
        return answer

    def __enter__(self) -> "RawStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.release()
        self._channel.close()


def forward(num_tokens: int) -> Forward:
    return Forward(torch.zeros(1, num_tokens, H))


def test_an_unknown_session(served: Served) -> None:
    with RawStream(served.address) as stream:
        error = stream.ask(steps.encode_open(steps.Open("nobody", resume=True))).error
    assert type(error) is SessionNotFoundError
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert_says(error, "no session nobody", "never opened", "open a new session")


def test_a_step_before_a_session_is_open(served: Served) -> None:
    with RawStream(served.address) as stream:
        error = stream.ask(whole(steps.encode_step(1, 0, forward(1)))).error
    assert type(error) is InvalidRequestError
    assert_says(error, "no session is open", "first message has to open one")


@pytest.mark.parametrize(
    ("step_id", "position", "words"),
    [
        (2, 5, ("5 tokens", "the session has 3")),
        (2, 0, ("0 tokens", "the session has 3")),
        (3, 3, ("step 3 is ahead", "expected 2")),
        (1, 2, ("2 tokens", "has 0")),
        (0, 3, ("step 0", "step 1 is done")),
    ],
)
def test_a_step_at_the_wrong_position(served: Served, step_id: int, position: int, words: tuple[str, ...]) -> None:
    with RawStream(served.address) as stream:
        stream.ask(steps.encode_open(steps.Open(f"raw {step_id} {position}")))
        assert stream.ask(whole(steps.encode_step(1, 0, forward(3)))).position == 3
        error = stream.ask(whole(steps.encode_step(step_id, position, forward(1)))).error
        assert type(error) is StepOrderError
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
        assert_says(error, *words)
        assert stream.ask(whole(steps.encode_step(2, 3, forward(1)))).position == 4
        stream.ask(steps.encode_close())


def test_a_message_that_is_none(served: Served) -> None:
    with grpc.insecure_channel(served.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(protocol.COMPUTE, None, None)(b"\xff\xff not a message")
        failure: Any = caught.value
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ComputeRequest" in failure.details()


def test_more_sessions_than_there_is_room_for(trunks: TrunkProcess, served: Served) -> None:
    with trunks.serving(served.directory, config={"max_sessions": 1}) as address, Client(address) as client:
        with client.session():
            refused = (ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert_refused(*refused, client.session, "1 sessions open", "try again later", "max_sessions")
        client.session().close()


OPEN_A_SESSION = """
import sys, torch
from splitlearn_comm.quickstart import Client
session = Client(sys.argv[1]).session()
session.step(torch.zeros(1, 3, 32))
print(session.position, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_client_process_that_is_killed(trunks: TrunkProcess, served: Served) -> None:
    with trunks.serving(served.directory, config={"detached_session_timeout_s": 0.2}) as address:
        command = [sys.executable, "-c", OPEN_A_SESSION, address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "3\n"
            assert trunks.statistics(address)["sessions_open"] == 1
            process.send_signal(signal.SIGKILL)
        eventually(lambda: trunks.statistics(address)["sessions_open"] == 0)
        assert trunks.statistics(address)["sessions_expired"] == 1


def test_a_client_that_forgets_its_cache(trunks: TrunkProcess, served: Served) -> None:
    split = SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=served.address)
    before = trunks.statistics(served.address)["sessions_open"]
    split(torch.ones(1, 3, dtype=torch.long), use_cache=True)  # nobody keeps what it returns
    split.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2)
    assert trunks.statistics(served.address)["sessions_open"] == before
    split.trunk.close()


def test_a_client_does_not_learn_where_the_servers_files_lie(served: Served) -> None:
    info = served.client.get_info()
    assert info.name == served.directory.name
    assert str(served.directory.parent) not in repr(info)
