"""What a new user gets wrong, against a real server in another process.

Each mistake is one clear error at the client, under the right gRPC code, and the server goes on serving.
"""

import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import torch

from splitlearn import SplitModelForCausalLM
from splitlearn.quickstart import load_split_model
from splitlearn_comm import (
    AddressInUseError,
    CommError,
    FingerprintMismatchError,
    GRPCComputeClient,
    InvalidRequestError,
    MessageTooLargeError,
    ResourceExhaustedError,
    SequenceTooLongError,
    ServerUnavailableError,
    SessionNotFoundError,
    StepOrderError,
    protocol,
)
from splitlearn_comm.framing import steps
from splitlearn_comm.messages import Forward
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing.waiting import eventually
from splitlearn_core import CheckpointError, PartInputError, SplitPointError, TrunkMismatchError
from splitlearn_manager import ManagedServer, ServerConfig
from tests.support.checkpoints import WEIGHTS, change_one_value, load_whole, save_tiny
from tests.support.hub import Hub
from tests.support.trunk_process import TrunkProcess

torch.set_num_threads(1)

H = 32
MAX_POSITIONS = 256


class Served(NamedTuple):
    """A tiny GPT-2 and the server that hosts its trunk."""

    directory: Path
    address: str
    client: Client


@pytest.fixture(scope="module")
def served(trunks: TrunkProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = save_tiny("gpt2", tmp_path_factory.mktemp("served") / "tiny")
    with trunks.serving(directory) as address, Client(address) as client:
        yield Served(directory, address, client)


@pytest.fixture(autouse=True)
def the_server_goes_on_serving(served: Served) -> Iterator[None]:
    """After whatever a test did, a good call and a good session are answered."""
    yield
    hidden_BTH = torch.randn(2, 3, H)
    with served.client.session() as session:
        torch.testing.assert_close(session.step(hidden_BTH), served.client.compute(hidden_BTH))


def assert_says(error: BaseException, *words: str) -> None:
    """The message is one line that contains all the words."""
    message = str(error)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def assert_refused(kind: type[CommError], code: grpc.StatusCode, call: Callable[[], object], *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.code is code
    assert caught.value.request_id is not None
    assert_says(caught.value, *words)


WRONG_TENSORS: dict[str, tuple[torch.Tensor, tuple[str, ...]]] = {
    "hidden size": (torch.zeros(1, 3, H + 1), ("expected [B, T, 32]", "came torch.float32 [1, 3, 33]", "same model")),
    "dtype": (torch.zeros(1, 3, H).bfloat16(), ("expected torch.float32", "came torch.bfloat16", ".to(torch.float32)")),
    "integer": (torch.ones(1, 3, H, dtype=torch.long), ("expected torch.float32", "torch.int64", "not token ids")),
    "token ids": (torch.ones(1, 3, dtype=torch.long), ("expected torch.float32", "torch.int64 [1, 3]", "Bottom")),
    "rank": (torch.zeros(3, H), ("expected [B, T, 32]", "came torch.float32 [3, 32]")),
    "no tokens": (torch.zeros(1, 0, H), ("B and T at least 1", "came torch.float32 [1, 0, 32]")),
    "NaN": (torch.full((1, 3, H), torch.nan), ("NaN or infinity", "came 96 others of 96", "overflow")),
    "infinity": (torch.tensor([torch.inf] + [0.0] * 95).view(1, 3, H), ("NaN or infinity", "came 1 others of 96")),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_tensors_are_invalid_arguments(served: Served, name: str) -> None:
    tensor, words = WRONG_TENSORS[name]
    refused = (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT)
    assert_refused(*refused, lambda: served.client.compute(tensor), *words)
    with served.client.session() as session:
        assert_refused(*refused, lambda: session.step(tensor), *words)
        assert session.position == 0
        # A step that was refused changes nothing, and the session goes on.
        assert session.step(torch.zeros(1, 3, H)).shape == (1, 3, H)


def test_beside_the_hidden_states(served: Served) -> None:
    refused = (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT)
    hidden_BTH, mask = torch.zeros(2, 3, H), torch.ones(2, 5, dtype=torch.long)
    with served.client.session() as session:
        session.step(hidden_BTH)
        wide = "attention_mask: expected integers or bools [B, past + T] = [2, 6]"
        assert_refused(*refused, lambda: session.step(hidden_BTH, attention_mask=mask), wide, "[2, 5]")
        assert_refused(*refused, lambda: session.step(hidden_BTH, position_ids=mask), "[B, T] = [2, 3]", "[2, 5]")
        assert_refused(*refused, lambda: session.step(hidden_BTH[:1]), "expected 2 rows", "came 1")
        assert_refused(*refused, lambda: session.crop(4), "cannot crop 4", "0 to 3")
        assert_refused(*refused, lambda: session.reorder([0, 2]), "[0, 2]", "from 0 to 1")


def test_nonfinite_hidden_states_may_be_allowed(trunks: TrunkProcess, served: Served) -> None:
    with (
        trunks.serving(served.directory, config={"refuse_nonfinite": False}) as address,
        Client(address) as client,
    ):
        assert client.compute(torch.full((1, 2, H), torch.nan)).isnan().all()


@pytest.mark.parametrize("points", [(4, 2), (0, 3), (2, 6), (2, 2), (-1, 3), (1, 2, 3), (2.0, 4), ("1", "3"), 3])
def test_cut_points_out_of_order_or_range(served: Served, points: Any) -> None:
    for load in (
        lambda: SplitModelForCausalLM.from_pretrained(str(served.directory), split_points=points),
        lambda: load_split_model(str(served.directory), points),
        lambda: ManagedServer(str(served.directory), port=0, split_points=points),
    ):
        with pytest.raises(SplitPointError) as caught:
            load()
        assert_says(caught.value, "0 < a < b < 6", f"got {points!r}")


def test_cut_points_that_are_not_the_servers(served: Served) -> None:
    with pytest.raises(TrunkMismatchError) as caught:
        SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=served.address, split_points=(1, 3))
    assert_says(caught.value, "(1, 3)", "(2, 4)", "leave them out")


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
        lambda: Client([nowhere]),
    ):
        with pytest.raises(ServerUnavailableError) as caught:
            call()
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert_says(caught.value, f"nothing listens at {nowhere}", "is the server started")


def test_something_that_is_no_address(served: Served) -> None:
    with pytest.raises(TypeError) as caught:
        SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=50051)  # type: ignore[arg-type]
    assert_says(caught.value, "'host:port'", "got int")


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
        return steps.decode_answer(next(self._answers))

    def __enter__(self) -> "RawStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.release()
        self._channel.close()


def forward(num_tokens: int) -> Forward:
    return Forward(torch.zeros(1, num_tokens, H))


def test_an_unknown_session(served: Served) -> None:
    with RawStream(served.address) as stream:
        error = stream.ask(steps.encode_open("nobody", 0, None, resume=True)).error
    assert type(error) is SessionNotFoundError
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert_says(error, "no session nobody", "never opened", "open a new session")


def test_a_step_before_a_session_is_open(served: Served) -> None:
    with RawStream(served.address) as stream:
        error = stream.ask(steps.encode_step(1, 0, forward(1))).error
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
        stream.ask(steps.encode_open(f"raw {step_id} {position}", 0, None, resume=False))
        assert stream.ask(steps.encode_step(1, 0, forward(3))).position == 3
        error = stream.ask(steps.encode_step(step_id, position, forward(1))).error
        assert type(error) is StepOrderError
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
        assert_says(error, *words)
        assert stream.ask(steps.encode_step(2, 3, forward(1))).position == 4
        stream.ask(steps.encode_close())


def test_a_message_that_is_none(served: Served) -> None:
    with grpc.insecure_channel(served.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(protocol.COMPUTE, None, None)(b"\xff\xff not a message")
        failure: Any = caught.value
    assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ComputeRequest" in failure.details()


def test_a_sequence_longer_than_the_models_maximum(served: Served) -> None:
    refused = (SequenceTooLongError, grpc.StatusCode.OUT_OF_RANGE)
    words = ("0 tokens in the cache and 257 new ones make 257", "256 positions", "shorter")
    assert_refused(*refused, lambda: served.client.compute(torch.zeros(1, MAX_POSITIONS + 1, H)), *words)
    with served.client.session() as session:
        session.step(torch.zeros(1, 3, H))
        words = ("3 tokens in the cache and 254 new ones make 257", "256 positions")
        assert_refused(*refused, lambda: session.step(torch.zeros(1, MAX_POSITIONS - 2, H)), *words)
        assert session.step(torch.zeros(1, MAX_POSITIONS - 3, H)).shape[1] == MAX_POSITIONS - 3
    split = SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=served.address)
    prompt = torch.ones(1, MAX_POSITIONS - 2, dtype=torch.long)
    assert split.generate(prompt, max_new_tokens=3).shape[1] == MAX_POSITIONS + 1  # the last token is never fed back
    with pytest.raises(PartInputError) as caught:
        split.generate(prompt, max_new_tokens=4)
    assert_says(caught.value, "at most 256 tokens", "got 257", "shorten the prompt or lower max_new_tokens")
    split.trunk.close()


def test_a_message_over_the_limit_of_either_side(trunks: TrunkProcess, served: Served) -> None:
    too_large, fits = torch.zeros(2, 100, H), torch.zeros(1, 100, H)
    raised = (MessageTooLargeError, ResourceExhaustedError)
    with GRPCComputeClient(served.address, max_message_bytes=20_000) as client:
        with pytest.raises(raised) as caught:
            client.compute(too_large)
        assert_says(caught.value, "bytes and the limit is 20000", "nothing was sent", "max_message_bytes")
        assert client.compute(fits).shape == fits.shape
    with trunks.serving(served.directory, config={"max_message_bytes": 20_000}) as address, Client(address) as client:
        for call in (lambda: client.compute(too_large), lambda: client.session().step(too_large)):
            with pytest.raises(raised) as caught:
                call()
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert_says(caught.value, "20000", "max_message_bytes")
        with pytest.raises(raised) as caught:  # it fits on the way there, and with the cache not on the way back
            client.compute(fits, use_cache=True)
        assert_says(caught.value, "the answer has", "at most 20000", "max_message_bytes")
        assert client.compute(fits).shape == fits.shape


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


LOAD = """
import sys
from splitlearn import SplitModelForCausalLM
from splitlearn_core import CheckpointError
try:
    SplitModelForCausalLM.from_pretrained(sys.argv[1])
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("offline", [False, True])
def test_a_model_that_does_not_exist(fake_hub: Hub, offline: bool) -> None:
    result = fake_hub.run_python(LOAD, "nobody/nothing", offline=offline)
    assert result.returncode == 0, result.stderr
    reason = "the hub cannot be reached" if offline else "the hub does not give it"
    assert result.stdout.startswith("no model 'nobody/nothing': it is not a directory here, ")
    assert "not in the local hub cache" in result.stdout
    assert reason in result.stdout
    assert "check the name" in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    for path in (str(tmp_path / "missing"), "./no/such/model"):
        with pytest.raises(CheckpointError) as caught:
            SplitModelForCausalLM.from_pretrained(path)
        assert_says(caught.value, f"no model {path!r}", "not a directory", "check the path")


def load_ways(directory: Path, address: str) -> list[Callable[[], object]]:
    return [
        lambda: SplitModelForCausalLM.from_pretrained(str(directory)),
        lambda: SplitModelForCausalLM.from_pretrained(str(directory), trunk=address),
        lambda: load_split_model(str(directory)),
        lambda: ManagedServer(str(directory), port=0),
    ]


def test_a_directory_without_a_model(served: Served, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    for load in load_ways(tmp_path, served.address):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert_says(caught.value, str(tmp_path), "config.json", "notes.txt")


def test_a_directory_without_weights(served: Served, tmp_path: Path) -> None:
    shutil.copy(served.directory / "config.json", tmp_path)
    for load in load_ways(tmp_path, served.address):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert_says(caught.value, str(tmp_path), "no weights", "model.safetensors", "found config.json")


@pytest.mark.parametrize("kept", [0, 5, 100, -5000, -1])
def test_a_truncated_safetensors_file(served: Served, tmp_path: Path, kept: int) -> None:
    directory = tmp_path / "truncated"
    shutil.copytree(served.directory, directory)
    content = (served.directory / WEIGHTS).read_bytes()[:kept]
    (directory / WEIGHTS).write_bytes(content)
    for load in load_ways(directory, served.address):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert_says(caught.value, str(directory / WEIGHTS), "truncated", str(len(content)), "fetch or copy it again")


def test_a_port_in_use(served: Served) -> None:
    port = int(served.address.rpartition(":")[2])
    server = ManagedServer(str(served.directory), port=port)
    with pytest.raises(AddressInUseError) as caught:
        server.start()
    assert_says(caught.value, f"127.0.0.1:{port}", "in use", "port=0")
    server.stop()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"max_sesions": 3}, TypeError, ("max_sesions",)),
        ({"max_sessions": 0}, ValueError, ("max_sessions must be a number greater than zero", "got 0")),
        ({"drain_timeout_s": "long"}, ValueError, ("drain_timeout_s must be a number", "got 'long'")),
        ({"max_sessions": True}, ValueError, ("max_sessions must be a number", "got True")),
        ({"refuse_nonfinite": 1}, ValueError, ("refuse_nonfinite must be True or False", "got 1")),
    ],
)
def test_settings_of_a_server(settings: dict[str, Any], error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        ServerConfig(**settings)
    assert_says(caught.value, *words)


def test_a_client_does_not_learn_where_the_servers_files_lie(served: Served) -> None:
    info = served.client.get_info()
    assert info.name == served.directory.name
    assert str(served.directory.parent) not in repr(info)


def test_what_was_refused_left_the_model_as_it_was(served: Served) -> None:
    split = SplitModelForCausalLM.from_pretrained(str(served.directory), trunk=served.address)
    prompt = torch.arange(3, 9).unsqueeze(0)
    expected = load_whole(served.directory).generate(prompt, max_new_tokens=6)
    assert torch.equal(split.generate(prompt, max_new_tokens=6), expected)
    split.trunk.close()
