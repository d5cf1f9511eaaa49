"""The `splitlearn` command, as the process that people start."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig
from typer.testing import CliRunner

from splitlearn import SplitModelForCausalLM
from splitlearn.cli.app import app, main
from splitlearn.cli.wording import in_options
from splitlearn_comm import AdapterNotFoundError, ServiceNotFoundError
from splitlearn_comm.quickstart import Client
from splitlearn_core import load_part, load_tokenizer
from splitlearn_core.builtin import builtin_directory
from splitlearn_manager import ManagedServer, ModelServer, ModelSpec
from splitlearn_manager.settings import ServeSettings
from tests.support.checkpoints import load_whole, save_tiny
from tests.support.hub import Hub
from tests.support.models import save_gpt2
from tests.support.programs import LISTENING, ROOT, run_program, serving_program
from tests.support.trunk_process import TrunkProcess

COMMANDS = {"demo", "serve", "status", "load", "unload", "drain", "generate", "support", "train"}
SPLITLEARN = ["-m", "splitlearn"]
WITHOUT_COMM = "import sys; sys.modules['splitlearn_comm'] = None; from splitlearn.cli import main; main()"


def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails in this process; returns its one line of error."""
    monkeypatch.setattr("sys.argv", ["splitlearn", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "Loading weights" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_help_lists_only_what_works() -> None:
    result = CliRunner().invoke(app, ["--help"], terminal_width=100)
    assert (
        set(re.findall(r"^\W*(\w+) {2,}[A-Z]", result.stdout, re.MULTILINE)) & (COMMANDS | {"audit", "chat"})
        == COMMANDS
    )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_says_every_default(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    options = [line for line in result.stdout.splitlines() if re.match(r"\W*--(?!help)", line)]
    assert [line for line in options if "default" not in line.lower()] == []


@pytest.mark.slow
def test_demo() -> None:
    result = run_program([*SPLITLEARN, "demo", "--max-new-tokens", "12"])
    assert result.returncode == 0, result.stderr
    assert "identical to the unsplit model: yes" in result.stdout
    assert re.search(r"[\d.]+ ms per token, [\d,]+ bytes per token on the wire", result.stdout)
    server, client = re.findall(r"^(?:server|client) +process (\d+)", result.stdout, re.MULTILINE)
    assert server != client
    assert "def read_lines(path):" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_serve_and_generate() -> None:
    arguments = ["generate", "--prompt", "import os\n", "--max-new-tokens", "16"]
    serve = [*SPLITLEARN, "serve", "--port", "0", "--split-points", "1,7"]
    with serving_program(serve, ended_by=signal.SIGINT) as address:
        remote = run_program([*SPLITLEARN, *arguments, "--trunk", address])
    local = CliRunner().invoke(app, arguments)
    assert remote.returncode == 0, remote.stderr
    assert remote.stdout == local.stdout
    assert remote.stdout.startswith("import os\n")
    assert "error" not in remote.stderr


@pytest.mark.slow
def test_generate_with_one_of_several_models() -> None:
    arguments = ["generate", "--prompt", "import os\n", "--max-new-tokens", "8"]
    specs = [
        ModelSpec(name="narrow", split_points=(3, 5), num_threads=1),
        ModelSpec(name="wide", split_points=(1, 7), num_threads=1),
    ]
    with ModelServer(specs, port=0) as server:
        remote = [
            CliRunner().invoke(app, [*arguments, "--trunk", server.address, *named])
            for named in (["--trunk-model", "narrow"], ["--trunk-model", "wide"], [])
        ]
    local = CliRunner().invoke(app, arguments)
    assert [result.stdout for result in remote] == [local.stdout, local.stdout, ""]
    assert isinstance(remote[2].exception, ServiceNotFoundError)
    assert "expected --trunk-model to be one of narrow, wide" in in_options(str(remote[2].exception))


@pytest.mark.slow
def test_generate_with_a_published_adapter() -> None:
    arguments = ["generate", "--prompt", "import os\n", "--max-new-tokens", "16"]
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)  # random, and so another text
    with ManagedServer(port=0) as server:
        model = SplitModelForCausalLM.from_pretrained(trunk=server.address)
        run = model.start_training(train="trunk", lora=lora, lr=1e-3)
        run.publish_adapter("mine")
        tokenizer = load_tokenizer("builtin")
        prompt = tokenizer("import os\n", return_tensors="pt")
        options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
        model.train(False)
        expected = str(tokenizer.decode(model.generate(**prompt, **options)[0]))
        run.close()
        model.trunk.close()
        adapted, plain = (
            CliRunner().invoke(app, [*arguments, "--trunk", server.address, *named])
            for named in (["--adapter", "mine"], [])
        )
        other = CliRunner().invoke(app, [*arguments, "--trunk", server.address, "--adapter", "others"])
    assert adapted.exit_code == plain.exit_code == 0
    assert adapted.stdout.rstrip("\n") == expected.rstrip("\n")
    assert adapted.stdout != plain.stdout
    assert isinstance(other.exception, AdapterNotFoundError)


def test_sampling_with_a_seed() -> None:
    texts = [
        CliRunner().invoke(app, ["generate", "--sample", "--seed", seed, "--max-new-tokens", "12"]).stdout
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_support() -> None:
    result = CliRunner().invoke(app, ["support", "gpt2", "llama"])
    assert result.exit_code == 0, result.exception
    assert re.search(r"^\W*gpt2 ", result.stdout, re.MULTILINE)
    assert "2 supported, 0 refused" in result.stdout


@pytest.mark.slow
def test_an_error_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = run_program([*SPLITLEARN, "serve", str(tmp_path), "--port", "0"])
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"error: the directory {tmp_path} holds no config.json but nothing: it is no checkpoint\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "./no/such/model"], "no model './no/such/model'"),
        (["generate", "--split-points", "6,2"], "0 < a < b < 8"),
        (["generate", "--split-points", "two,six"], "--split-points takes two integers such as 2,6; got 'two,six'"),
        (["generate", "--dtype", "float12"], "--dtype takes float32, bfloat16, float16; got 'float12'"),
        (["generate", "--trunk", "127.0.0.1:1"], "nothing listens at 127.0.0.1:1"),
        (
            ["generate", "--trunk", "localhost"],
            "a trunk's address is host:port, such as localhost:50051; got 'localhost'",
        ),
        (["generate", "--trunk-model", "wide"], "--trunk-model wide names a model of a server: say which with --trunk"),
        (["generate", "--adapter", "mine"], "--adapter mine names one that a server keeps: say which with --trunk"),
        (["generate", "--trunk", "127.0.0.1:1", "--adapter", ""], "--adapter '' names one that a server keeps"),
        (
            ["generate", "--trunk", "127.0.0.1:1", "--trunk-model", "größe"],
            "--trunk-model takes the name of a model in ASCII",
        ),
        (["generate", "--trunk", "127.0.0.1:1", "--tls-ca", "none.pem"], "--tls-ca none.pem cannot be read: No such"),
        (
            ["generate", "--trunk", "192.0.2.1:1", "--token", "a-token-of-mine-1234"],
            "whoever sees it could use it: give --tls, or --tls-ca for a certificate of your own",
        ),
        (["generate", "--trunk", ""], "a trunk's address is host:port, such as localhost:50051; got ''"),
        (["serve", "--device", "nonsense"], "device 'nonsense' is not there"),
        (["serve", "--split-points", "3"], "--split-points takes two integers"),
        (["support", "nonsense"], "nonsense: no model type in the table"),
        (["generate", "--prompt", "import os", "--max-new-tokens", "99999"], "--max-new-tokens takes at most "),
        (["generate", "--prompt", "x = 1\n" * 200], "none behind this prompt; shorten it"),
        (["generate", "--prompt", ""], "--prompt takes some text to go on from; got ''"),
        (["generate", "--sample", "--temperature", "0"], "--temperature takes a number above 0; got 0"),
        (["serve", "--log-level", "loud"], "--log-level takes debug, info, warning, error; got 'loud'"),
        (["serve", "--port", "0", "--attn-implementation", "none"], "--attn-implementation none does not go with this"),
        (
            ["serve", "--port", "0", "--host", "192.0.2.1", "--allow-insecure"],
            "'192.0.2.1' is no address of this machine",
        ),
        (["serve", "--port", "0", "--host", "0.0.0.0"], "give --tls-certificate and --tls-key, and --token-file"),
    ],
)
def test_what_a_user_can_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in fail(monkeypatch, capsys, *arguments)


@pytest.fixture
def settings_made(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """What `splitlearn serve` was told, each time; nothing is served."""
    said: list[ServeSettings] = []
    monkeypatch.setattr("splitlearn.cli.serve.made_server", lambda settings, _: said.append(settings))
    monkeypatch.setattr("splitlearn.cli.serve.run", lambda _: None)
    return said


def test_options_about_training(settings_made: list[ServeSettings]) -> None:
    for options in (["--max-trainings", "3", "--allow-full-training"], ["--adapters-only"], []):
        assert CliRunner().invoke(app, ["serve", *options]).exit_code == 0
    told = [(settings.server.max_trainings, settings.server.allow_full_training) for settings in settings_made]
    assert told == [(3, True), (8, False), (8, False)]


def test_the_option_to_compile(settings_made: list[ServeSettings]) -> None:
    for arguments in (["--compile"], ["small=builtin", "--compile"], []):
        assert CliRunner().invoke(app, ["serve", *arguments]).exit_code == 0
    told = [(settings.models[0].name, settings.models[0].compile, settings.managed) for settings in settings_made]
    assert told == [("builtin", True, False), ("small", True, True), ("builtin", False, False)]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["--in-process", "--managed"])
def test_without_a_compiler_a_trunk_is_served_as_it_is_and_the_log_says_why(where: str, tmp_path: Path) -> None:
    save_gpt2(tmp_path / "tiny")
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    hidden_BTH = torch.linspace(-1, 1, 96).view(1, 3, 32)
    command = [sys.executable, *SPLITLEARN, "serve", str(tmp_path / "tiny"), "--port", "0", "--compile", where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            address = process.stdout.readline().removeprefix(LISTENING).strip()
            with Client(address) as client, client.session() as session:
                came = session.step(hidden_BTH)
            process.send_signal(signal.SIGTERM)
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert torch.equal(came, load_part(str(tmp_path / "tiny"), "trunk")(hidden_BTH))
    (said,) = [line for line in errors.splitlines() if "is not compiled and runs as it is" in line]
    assert "the Trunk of GPT2LMHeadModel" in said
    assert "no-such-compiler" in said


def test_a_port_in_use(
    trunks: TrunkProcess, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with trunks.serving(save_tiny("gpt2", tmp_path)) as address:
        monkeypatch.setattr("sys.argv", ["splitlearn", "serve", str(tmp_path), "--port", address.partition(":")[2]])
        with pytest.raises(SystemExit) as caught:
            main()
    assert caught.value.code == 1
    assert f"error: cannot listen on {address}" in capfd.readouterr().err


def test_a_server_that_is_full(
    trunks: TrunkProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with trunks.serving(config={"max_sessions": 1}) as address, Client(address) as client, client.session():
        assert "the server has 1 sessions open" in fail(monkeypatch, capsys, "generate", "--trunk", address)


def test_square_brackets_reach_the_reader(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "splitlearn_comm", None)
    monkeypatch.delitem(sys.modules, "splitlearn.remote", raising=False)
    said = fail(monkeypatch, capsys, "generate", "--trunk", "127.0.0.1:1")
    assert "pip install splitlearn-core[client] splitlearn-comm[client]" in said


@pytest.mark.slow
def test_without_the_packages_of_a_server_the_rest_works(tmp_path: Path) -> None:
    result = run_program(["-c", WITHOUT_COMM, "generate", "--max-new-tokens", "2", "--prompt", "import os"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("import os")


@pytest.mark.parametrize("error", [ValueError, KeyError, FileNotFoundError, ImportError, ZeroDivisionError])
def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail_by_mistake() -> None:
        raise error("a line of ours that is wrong")

    monkeypatch.setattr("sys.argv", ["splitlearn", "support"])
    monkeypatch.setattr("splitlearn.cli.support.support_rows", fail_by_mistake)
    with pytest.raises(error, match="a line of ours"):
        main()


def test_a_package_of_ours_that_is_broken_is_not_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["splitlearn", "generate", "--trunk", "127.0.0.1:1"])
    monkeypatch.setitem(sys.modules, "splitlearn.remote", None)  # as if the file were not there
    with pytest.raises(ModuleNotFoundError, match=r"splitlearn\.remote"):
        main()


@pytest.mark.slow
def test_a_revision(fake_hub: Hub, tmp_path: Path) -> None:
    commits = []
    for seed in (0, 1):
        directory = tmp_path / str(seed)
        shutil.copytree(builtin_directory(), directory)
        commits.append(publish_gpt2(fake_hub, directory, seed))
    environment = fake_hub.environment()
    generate = ["generate", "gpt2", "--max-new-tokens", "8", "--prompt", "import os"]
    serve = [*SPLITLEARN, "serve", "gpt2", "--port", "0", "--log-level", "warning", "--revision", commits[0]]
    with serving_program(serve, environment) as address:
        old, new, same, other, shown = run_commands(
            [*generate, "--revision", commits[0]],
            [*generate, "--revision", commits[1]],
            [*generate, "--trunk", address, "--revision", commits[0]],
            [*generate, "--trunk", address],
            ["demo", "gpt2", "--max-new-tokens", "4", "--revision", commits[0]],
            environment=environment,
        )
    assert old.out != new.out
    assert (same.out, same.status) == (old.out, 0), same.errors
    assert other.status == 1
    error = next(line for line in other.errors.splitlines() if line.startswith("error: "))
    assert error.startswith("error: the trunk was loaded from another checkpoint: ")
    assert f"that of gpt2 at commit {commits[1]} is " in error
    assert "give both sides the same --revision, one commit by its full name" in error
    assert "identical to the unsplit model: yes" in shown.out, shown.errors


COMMANDS_IN_A_ROW = """
import contextlib, io, json, sys
from splitlearn.cli import main
ends = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["splitlearn", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
    ends.append([status, out.getvalue(), errors.getvalue()])
print(json.dumps(ends))
"""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    errors: str


def run_commands(*commands: list[str], environment: dict[str, str]) -> list[Ended]:
    """Run commands one after the other in one process, which imports everything once."""
    result = run_program(["-c", COMMANDS_IN_A_ROW, json.dumps(commands)], environment)
    assert result.returncode == 0, result.stderr
    return [Ended(*end) for end in json.loads(result.stdout)]


def publish_gpt2(hub: Hub, directory: Path, seed: int) -> str:
    """Publish a random model with the tokenizer of the built-in one; returns the commit."""
    for path in directory.glob("*.safetensors"):
        path.unlink()
    vocabulary_size = json.loads((directory / "config.json").read_text())["vocab_size"]
    save_gpt2(directory, vocabulary_size=vocabulary_size, seed=seed)
    return hub.publish("gpt2", directory)


def test_whole_and_split_agree_on_the_command_line(tmp_path: Path) -> None:
    # The text of `generate` is the unsplit model's, decoded.
    tokenizer = load_tokenizer("builtin")
    encoded = tokenizer("import os\n", return_tensors="pt")
    tokens = load_whole(builtin_directory()).generate(**encoded, max_new_tokens=16, do_sample=False)
    said = CliRunner().invoke(app, ["generate", "--prompt", "import os\n", "--max-new-tokens", "16"]).stdout
    assert said.rstrip("\n") == tokenizer.decode(tokens[0]).rstrip("\n")
