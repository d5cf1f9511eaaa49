"""`splitlearn serve` with several models, and `status`, `load`, `unload` and `drain` from another process."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from splitlearn.cli import main
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing.waiting import eventually
from splitlearn_manager import ManagedServer, ServerConfig
from tests.support.models import save_gpt2
from tests.support.programs import LISTENING, ROOT

torch.set_num_threads(1)
SPLITLEARN = ["-m", "splitlearn"]
HIDDEN_BTH = torch.linspace(-1, 1, 2 * 3 * 32).view(2, 3, 32)
NUM_GRACE_S = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return str(directory)


@pytest.fixture(scope="module")
def configuration(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("configuration") / "server.toml"
    path.write_text(
        f"""
        port = 0
        log_level = "error"
        server = {{drain_timeout_s = {NUM_GRACE_S}}}
        lifecycle = {{memory_bytes = {{cpu = 2_000_000_000}}}}
        [[models]]
        name = "one"
        model = "{model}"
        num_threads = 1
        [[models]]
        name = "two"
        model = "{model}"
        split_points = [1, 5]
        num_threads = 1
        """
    )
    return str(path)


@contextmanager
def serving(configuration: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, *SPLITLEARN, "serve", "--config", configuration]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            line = process.stdout.readline()
            assert line.startswith(LISTENING), process.communicate()[1]
            yield process, line.removeprefix(LISTENING).strip()
        finally:
            if process.poll() is None:
                process.kill()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process; returns its exit status."""
    monkeypatch.setattr("sys.argv", ["splitlearn", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.slow
def test_models_come_and_go_and_the_server_is_drained(
    configuration: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        status = run(monkeypatch, *arguments)
        out, error = capsys.readouterr()
        assert status == 0, error
        return out

    def refused(*arguments: str) -> str:
        assert run(monkeypatch, *arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    with serving(configuration) as (process, address):
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        with Client(address, model="two") as client, client.session() as session:
            session.step(HIDDEN_BTH)
            shown = said("status", address)
            assert re.search(r"^one +1 +READY +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +0 +it was loaded", shown, re.MULTILINE)
            assert re.search(r"^two +1 +READY .* 1 +it was loaded", shown, re.MULTILINE)
            assert shown.endswith("serving, 2 of 2 ready\n")
        assert refused("load", address, "one").startswith(
            "error: cannot load one version 1: it is ready (it was loaded);"
        )
        assert refused("unload", address, "nobody") == "error: there is no model 'nobody'; known are: one, two"
        assert refused("load", address, "gone=./no/such").startswith(
            "error: gone version 1 cannot be loaded: no model './no/such'"
        )
        assert said("unload", address, "one") == "one is unloaded\n"
        assert refused("unload", address, "one").startswith("error: cannot unload one version 1: it is unloaded ")
        assert said("load", address, "one") == "one version 1 is ready\n"
        assert said("load", address, "two", "--reload", "--split-points", "2,3") == "two version 2 is ready\n"
        with Client(address, model="two") as client:
            assert client.get_info().split_points == (2, 3)
        children += psutil.Process(process.pid).children(recursive=True)
        assert said("drain", address) == f"{address} is draining, with 0 sessions\n{address} has ended\n"
        out, error = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, ""), error
        assert "Traceback" not in error
        assert [child for child in children if child.is_running()] == []
        assert refused("status", address).startswith(f"error: nothing listens at {address}")


@pytest.mark.slow
def test_sigterm_ends_all_models_within_the_grace_time(configuration: str) -> None:
    with serving(configuration) as (process, address):
        children = psutil.Process(process.pid).children(recursive=True)
        with Client(address, model="one") as client, client.session() as session:
            session.step(HIDDEN_BTH)
            process.send_signal(signal.SIGTERM)
            error = process.communicate(timeout=NUM_GRACE_S + 5)[1]
        assert process.returncode == 0, error
        assert "Traceback" not in error
        eventually(lambda: not any(child.is_running() for child in children))


def test_an_operator_without_a_right_token(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ServerConfig(tokens={"user": "a-token-for-a-user-1234"}, operators=("ops",))
    with ManagedServer(model, port=0, config=config) as server:
        assert run(monkeypatch, "drain", server.address, "--token", "a-token-for-a-user-1234") == 1
        assert run(monkeypatch, "drain", server.address, "--token", "a-token-of-nobody-1234") == 1
        lines = capsys.readouterr().err.splitlines()
        first, second = [line for line in lines if line.startswith("error: ")]
        assert first.startswith("error: 'user' is no operator of this server: ask whoever runs it")
        assert second.startswith("error: no valid token came with this call: ")
        assert run(monkeypatch, "status", server.address, "--token", "a-token-for-a-user-1234") == 0
        assert "serving, 1 of 1 ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nmax_sesions = 1", "server.toml: unknown key 'server.max_sesions'; there are "),
        ("port = ", "server.toml is no TOML: "),
        ("[server]\nmax_sessions = 0", "server.toml: max_sessions must be a number greater than zero; got 0"),
        ("[[models]]\nname = 'a'\nmodel = 'builtin'\nkv_bytes = -1", "server.toml: kv_bytes must be a whole number"),
    ],
)
def test_a_configuration_that_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "server.toml"
    path.write_text(text)
    assert run(monkeypatch, "serve", "--config", str(path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--config", "none.toml"], "the configuration none.toml cannot be read: No such file or directory"),
        (["serve", "a=builtin", "b=builtin", "--dtype", "float32"], "--dtype: about one model, and there are several"),
        (["serve", "builtin", "builtin"], "the command line: two models are builtin version 1"),
        (["serve", "a=builtin", "--in-process", "b=builtin"], "a server that is not managed holds one model; got 2"),
        (["serve", "--operator", "ops"], "operators are known by their tokens or certificates"),
        (["serve", "--log-format", "xml"], "the command line: log_format must be one of auto, json, text; got 'xml'"),
        (["status", "localhost"], "a server's address is host:port, such as localhost:50051; got 'localhost'"),
        (["status", "127.0.0.1:1"], "nothing listens at 127.0.0.1:1"),
        (["load", "127.0.0.1:1", "m", "--dtype", "float12"], "--dtype takes float32, bfloat16, float16"),
        (["drain", "192.0.2.1:1", "--token", "a-token-for-ops-1234"], "the token would go to 192.0.2.1:1 in the clear"),
    ],
)
def test_what_an_operator_can_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(monkeypatch, *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_port_in_use_is_said_before_models_are_loaded(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ManagedServer(model, port=0) as server:
        port = server.address.rpartition(":")[2]
        assert run(monkeypatch, "serve", "a=builtin", "b=builtin", "--port", port) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}")
