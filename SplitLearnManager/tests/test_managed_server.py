"""`ManagedServer`: from a model's name to a listening server, and an orderly end."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import splitlearn_core
from splitlearn_comm import ServerUnavailableError, SessionNotFoundError
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing.waiting import eventually
from splitlearn_core import load_part
from splitlearn_manager import DeviceNotFoundError, ManagedServer, ServerConfig
from splitlearn_manager.device import choose_device
from tests.support.hub import Hub
from tests.support.models import save_gpt2

torch.set_num_threads(1)

HIDDEN_BTH = torch.linspace(-1, 1, 2 * 3 * 32).view(2, 3, 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return str(directory)


def test_it_serves_the_trunk_of_the_checkpoint(model: str) -> None:
    trunk = load_part(model, "trunk")
    with ManagedServer(model, port=0) as server, Client(server.address) as client:
        assert torch.equal(client.compute(HIDDEN_BTH), trunk(HIDDEN_BTH))
        info = client.get_info()
        assert server.statistics().computes == 1
    assert info.split_points == (2, 4)
    assert info.fingerprint == f"{trunk.fingerprint}:2-4"
    assert info.version == splitlearn_core.__version__


COMPILED = "splitlearn_core.parts.compiling"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here")
def test_a_compiled_trunk_serves_the_same(model: str, caplog: pytest.LogCaptureFixture) -> None:
    with ManagedServer(model, port=0) as server, Client(server.address) as client, client.session() as session:
        expected = [session.step(HIDDEN_BTH[:1]), session.step(HIDDEN_BTH[1:, :1])]
    with (
        caplog.at_level(logging.INFO, COMPILED),
        ManagedServer(model, port=0, compile=True) as server,
        Client(server.address) as client,
        client.session() as session,
    ):
        came = [session.step(HIDDEN_BTH[:1]), session.step(HIDDEN_BTH[1:, :1])]
    said = [record.message for record in caplog.records if record.name == COMPILED]
    assert said == ["the Trunk of GPT2LMHeadModel is compiled: 2 layers"]
    for mine, others in zip(came, expected, strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=1e-5 * float(others.abs().max().clamp(min=1)))


def test_cut_points_and_dtype_are_the_callers(model: str) -> None:
    with (
        ManagedServer(model, port=0, split_points=[1, 5], dtype=torch.bfloat16) as server,
        Client(server.address) as client,
    ):
        info = client.get_info()
        assert client.compute(HIDDEN_BTH.bfloat16()).dtype == torch.bfloat16
    assert info.split_points == (1, 5)
    assert info.dtype == torch.bfloat16


def test_what_was_chosen_is_said(model: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "splitlearn_manager"):
        ManagedServer(model, port=0, device="cpu", attn_implementation="eager")
    (message,) = [record.message for record in caplog.records if record.name.startswith("splitlearn_manager")]
    assert message.startswith(f"hosting layers [2, 4) of 6 of {model}: device cpu, dtype torch.float32, ")
    assert "attention eager, fingerprint " in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_the_device_is_the_cpu() -> None:
    assert choose_device(None) == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "cpu:x"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(DeviceNotFoundError, match=f"device '{device}' is not there: ") as caught:
        choose_device(device)
    assert "\n" not in str(caught.value)


def test_starting_and_stopping_again(model: str) -> None:
    server = ManagedServer(model, port=0)
    ready: list[str] = []
    server.start(block=False, on_ready=lambda: ready.append(server.address))
    assert ready == [server.address]
    with pytest.raises(RuntimeError, match="running already"):
        server.start(block=False)
    with Client(server.address) as client:
        client.compute(HIDDEN_BTH)
    server.stop()
    server.stop()
    with Client(server.address) as client, pytest.raises(ServerUnavailableError):
        client.health()


def test_a_server_may_be_started_again(model: str) -> None:
    server = ManagedServer(model, port=0)
    outputs = []
    for _ in range(2):
        with server, Client(server.address) as client:
            outputs.append(client.compute(HIDDEN_BTH))
    assert torch.equal(outputs[0], outputs[1])


def test_an_idle_session_expires(model: str) -> None:
    config = ServerConfig(idle_session_timeout_s=1.0)
    with ManagedServer(model, port=0, config=config) as server, Client(server.address) as client:
        session = client.session()
        session.step(HIDDEN_BTH)
        eventually(lambda: server.statistics().sessions_expired == 1)
        with pytest.raises(SessionNotFoundError, match=r"expired \d+ s after it was opened: idle for \d+ s") as caught:
            session.step(HIDDEN_BTH)
        assert "idle_session_timeout_s" in str(caught.value)
        assert "open a new session" in str(caught.value)
        assert server.statistics().sessions_open == 0


REVISIONS = """
import logging, sys, torch
torch.set_num_threads(1)
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
from splitlearn_comm.quickstart import Client
from splitlearn_manager import ManagedServer
for revision in (None, *sys.argv[1:]):
    with ManagedServer("gpt2", port=0, revision=revision) as server, Client(server.address) as client:
        print("serves", client.get_info().fingerprint)
"""


@pytest.mark.slow
def test_a_revision_is_served_and_its_commit_said(fake_hub: Hub, tmp_path: Path) -> None:
    expected = {}
    for seed, name in enumerate(("old", "main")):
        save_gpt2(tmp_path / name, seed=seed)
        commit = fake_hub.publish("gpt2", tmp_path / name)
        expected[name] = (commit, f"{load_part(str(tmp_path / name), 'trunk').fingerprint}:2-4")
    old_commit, old_fingerprint = expected["old"]
    result = fake_hub.run_python(REVISIONS, old_commit)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stdout.splitlines() if line.startswith(("serves", "hosting"))]
    assert [line.removeprefix("serves ") for line in said[1::2]] == [expected["main"][1], old_fingerprint]
    assert f"of gpt2 at commit {expected['main'][0]}: " in said[0]
    assert f"of gpt2 at commit {old_commit}: " in said[2]


SERVE = """
import logging, sys, torch
torch.set_num_threads(1)
from splitlearn_manager import ManagedServer, ServerConfig
server = ManagedServer(sys.argv[1], port=0, config=ServerConfig(drain_timeout_s=1.0))
server.start(on_ready=lambda: print(server.address, flush=True))
print("stopped", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_while_a_session_is_open(model: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SERVE, model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with Client(process.stdout.readline().strip()) as client:
            session = client.session()
            session.step(HIDDEN_BTH)
            process.send_signal(number)
            out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert out == "stopped\n"
            assert "Traceback" not in errors
            with pytest.raises(ServerUnavailableError):
                session.step(HIDDEN_BTH[:, :1])


def test_clients_are_told_the_name_of_a_directory_and_not_its_path(model: str) -> None:
    other_way = f"{Path(model).parent}/../{Path(model).parent.name}/tiny/"
    with ManagedServer(other_way, port=0) as server, Client(server.address) as client:
        assert client.get_info().name == "tiny"
