"""`splitlearn train`, as people start it."""

import ast
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from splitlearn.cli.app import app, main
from splitlearn.cli.train_options import AdapterOptions, UpdateOptions
from splitlearn.training import SplitTrainingArguments
from splitlearn_comm.testing import eventually
from splitlearn_core.builtin import builtin_directory
from splitlearn_core.training.trainer import last_checkpoint
from splitlearn_manager import ManagedServer, ServerConfig
from tests.end_to_end.test_command_line import SPLITLEARN, fail
from tests.support.checkpoints import load_whole
from tests.support.pages import blocks_of
from tests.support.programs import ROOT, run_program, serving_program

TEXT = "It was a damp, drizzly November in my soul, and I thought I would sail about a little.\n" * 40
SMALL = ["--steps", "4", "--batch-size", "2", "--block-size", "32", "--save-steps", "2", "--seed", "3"]


def written(directory: Path, text: str = TEXT, name: str = "novel.txt") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def adapter_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_it_trains_across_the_wire_and_peft_loads_what_comes_out(tmp_path: Path) -> None:
    data, out = written(tmp_path), tmp_path / "out"
    with serving_program([*SPLITLEARN, "serve", "--port", "0"], ended_by=signal.SIGINT) as address:
        command = [*SPLITLEARN, "train", "--data", str(data), "--output", str(out), "--trunk", address, *SMALL]
        result = run_program(command)
        assert result.returncode == 0, result.stderr
        again = [run_program([*command, *further]) for further in (["--resume"], [])]
    assert [run.returncode for run in again] == [1, 1]
    assert re.search(r"error: --steps 4: \S+/out/checkpoint-4 is at update 4 already; ask for more", again[0].stderr)
    assert "has checkpoints already: --resume goes on from them; or name another one" in again[1].stderr
    assert re.search(r"^learning from \d+ examples of \d+ tokens, \d+ held out$", result.stdout, re.MULTILINE)
    assert re.search(r"^update 4 of 4: loss \d", result.stdout, re.MULTILINE)
    before, after = re.search(r"held out: ([\d.]+), before ([\d.]+)$", result.stdout, re.MULTILINE).groups()[::-1]  # type: ignore[union-attr]
    assert float(after) < float(before)
    assert "Traceback" not in result.stderr
    plain = PeftModel.from_pretrained(load_whole(builtin_directory()), str(out / "adapter"))
    assert any(p.abs().sum() > 0 for name, p in plain.named_parameters() if "lora_B" in name)
    by_its_own_word = AutoPeftModelForCausalLM.from_pretrained(str(out / "adapter"))
    ids = torch.arange(3, 12).unsqueeze(0)
    assert torch.equal(by_its_own_word(ids).logits, plain(ids).logits)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    local = CliRunner().invoke(app, ["train", "--data", str(data), "--output", str(tmp_path / "local"), *SMALL])
    assert local.exit_code == 0, local.output
    assert all(torch.equal(tensor, adapter_of(tmp_path / "local")[name]) for name, tensor in adapter_of(out).items())


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    data = written(tmp_path)

    out = tmp_path / "straight"

    def train(*further: str) -> str:
        result = CliRunner().invoke(app, ["train", "--data", str(data), "--output", str(out), *SMALL, *further])
        assert result.exit_code == 0, result.output
        return result.output

    train()
    straight = adapter_of(out)
    for path in (out / "checkpoint-4").iterdir():
        if path.is_file():
            path.unlink()  # as if it had been killed while it wrote the last one
    assert f"going on from update 2 in {out}/checkpoint-2\n" in train("--resume")
    again = adapter_of(out)
    assert all(torch.equal(again[name], tensor) for name, tensor in straight.items())


def test_a_training_that_has_had_its_epochs(tmp_path: Path) -> None:
    command = ["train", "--data", str(written(tmp_path)), "--block-size", "256", "--output", str(tmp_path / "out")]
    for further, said in (([], "update 2 of 2"), (["--resume"], "it has had all updates of --epochs 1 already\n")):
        result = CliRunner().invoke(app, [*command, *further])
        assert result.exit_code == 0, result.output
        assert said in result.output


def test_another_training_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", str(written(tmp_path)), "--output", str(tmp_path / "out"), *SMALL]
    assert CliRunner().invoke(app, command).exit_code == 0
    told = {
        "--lora-rank": (
            "4",
            "is of another training: its adapter's r is 8, here 4; go on with the options that it was",
        ),
        "--optimizer": ("sgd", "is of another training: its optimizer is AdamW, here SGD; go on with the options"),
        "--parts": ("bottom", "is of another training: its adapter is of 32 modules, here of 8"),
    }
    for option, (value, words) in told.items():
        message = fail(monkeypatch, capsys, *command, "--steps", "5", "--resume", option, value)
        assert words in message


@pytest.mark.slow
def test_whoever_stops_it_is_told_where_it_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, *SPLITLEARN, "train", "--data", str(written(tmp_path)), "--output", str(out)]
    further = ["--block-size", "32", "--epochs", "1000", "--save-steps", "2"]
    with subprocess.Popen([*command, *further], cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        eventually(lambda: last_checkpoint(out) is not None, timeout_s=100)
        said = ""
        for _ in range(5):  # Python drops one that comes while a finaliser runs
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                said = process.communicate(timeout=20)[0]
                break
    assert process.returncode == 130
    assert f"the training has not come to its end; there is {last_checkpoint(out)}: --resume goes on from it\n" in said


@pytest.mark.parametrize(
    ("optimizer", "kind"), [("adamw", "AdamW"), ("sgd", "SGD"), ("adagrad", "Adagrad"), ("rmsprop", "RMSprop")]
)
def test_an_optimizer_by_its_name(optimizer: str, kind: str, tmp_path: Path) -> None:
    arguments = SplitTrainingArguments(
        use_cpu=True, output_dir=str(tmp_path), **UpdateOptions(optimizer=optimizer).arguments()
    )
    assert arguments.optimizer()[0].__name__ == kind


def test_the_documents_show_the_adapter_of_the_command() -> None:
    own = AdapterOptions().lora()
    assert own is not None
    shown = []
    for page in (ROOT / "README.md", ROOT / "docs" / "training.md"):
        for block in blocks_of(page):
            shown += [ast.unparse(n) for n in ast.walk(ast.parse(block.code)) if is_lora(n)]
    assert len(shown) >= 2
    for text in shown:
        lora = eval(text, {"LoraConfig": LoraConfig})
        assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (own.r, own.lora_alpha, own.lora_dropout)
        assert lora.target_modules == own.target_modules


def is_lora(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "LoraConfig"


@pytest.mark.parametrize(
    ("arguments", "text", "told"),
    [
        (["--data", "DATA"], "", "novel.txt is empty: expected text to learn from"),
        ([], TEXT, "--data names the text to learn from: a .txt or a .jsonl"),
        (["--data", "DATA", "--block-size", "99999"], TEXT, r"--block-size 99999 is more than the \d+ tokens"),
        (["--data", "DATA", "--precision", "int8"], TEXT, "--precision takes float32, bf16 or fp16; got 'int8'"),
        (["--data", "DATA", "--parts", "head"], TEXT, "--parts takes one or more of bottom, trunk, top; got 'head'"),
        (["--data", "DATA", "--parts", ""], TEXT, "--parts takes one or more of bottom, trunk, top; got ''"),
        (["--data", "DATA", "--report-to", "nowhere"], TEXT, "--report-to nowhere cannot be had here: nowhere is not"),
        (["--data", "DATA", "--optimizer", "adamx"], TEXT, "--optimizer takes adamw, sgd, adagrad, rmsprop; got 'ad"),
        (
            ["--data", "DATA", "--lora-targets", "q_proj"],
            TEXT,
            "--lora-targets q_proj matches nothing .*are c_attn, c_",
        ),
        (["--data", "DATA", "--lora-targets", "c_attn,"], TEXT, "--lora-targets takes names of modules, or all-linear"),
        (
            ["--data", "DATA", "--lora-targets", "c_attn,c_none"],
            TEXT,
            "--lora-targets: no module of these parts is called c_none; there are adapters of c_attn alone",
        ),
        (["--data", "DATA", "--epochs", "0"], TEXT, "--epochs takes a number above 0"),
        (["--data", "DATA", "--epochs", "inf"], TEXT, "--epochs takes a finite number; got inf"),
        (["--data", "DATA", "--learning-rate", "inf"], TEXT, "--learning-rate takes a finite number; got inf"),
        (["--data", "DATA", "--split-points", "6"], TEXT, "--split-points takes two integers such as 2,6; got '6'"),
        (["--data", "DATA", "--trunk-model", "m"], TEXT, "--trunk-model m names a model of a server: say which with"),
        (["--data", "DATA"], "Some words.", "makes one example, and .* with --eval-data, or cut it .* --block-size"),
        (["--data", "DATA", "--eval-data", "SHORT"], TEXT, "--eval-data: .*short.txt has 1 of the 2 tokens"),
        (["--data", "DATA", "--eval-data", "none.txt"], TEXT, "--eval-data none.txt cannot be read: No such file"),
        (["--data", "LINE"], TEXT, "--data .*line.jsonl makes one example, .* name other text with --eval-data$"),
        (
            ["--data", "LONG"],
            TEXT,
            "--data: .*long.jsonl, line 1 has .* or raise --block-size as far as the model goes",
        ),
        (["--data", "DATA", "--output", "DATA"], TEXT, "--output .*novel.txt is a file: name a directory"),
        (["--data", "DATA", "--output", "DATA/under"], TEXT, "--output .*under cannot be made: Not a directory"),
        (["--data", "DIRECTORY"], TEXT, "--data .* cannot be read: Is a directory"),
        (
            ["--data", "DATA", "--resume", "--output", "EMPTY"],
            TEXT,
            "no whole checkpoint of a split training in .*empty",
        ),
        (["--data", "DATA", "--trunk", "localhost:1"], TEXT, "localhost:1"),
        (["--data", "nothing.txt"], TEXT, "nothing.txt cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
    told: str,
) -> None:
    names = {
        "DATA": written(tmp_path, text),
        "DATA/under": tmp_path / "novel.txt" / "under",
        "DIRECTORY": tmp_path,
        "EMPTY": tmp_path / "empty",
        "LINE": written(tmp_path, json.dumps({"text": "Some words."}), "line.jsonl"),
        "LONG": written(tmp_path, json.dumps({"text": TEXT}), "long.jsonl"),
        "SHORT": written(tmp_path, "a", "short.txt"),
    }
    given = [str(names.get(argument, argument)) for argument in arguments]
    message = fail(monkeypatch, capsys, "train", "--output", str(tmp_path / "out"), *given)
    assert re.search(told, message), message


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with ManagedServer(port=0, config=ServerConfig(**request.param)) as server:
        yield server.address


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "options", "told"),
    [
        (
            {},
            ["--lora-rank", "0"],
            "train an adapter (--lora-rank 1 or more), leave the trunk out of --parts, or start",
        ),
        ({}, ["--split-points", "3,5"], "the cut points (3, 5) are not the trunk's, (2, 6): leave them out"),
        ({"max_training_bytes": 10**6}, ["--lora-rank", "1"], "train with --recompute 1, or a smaller --batch-size or"),
        ({"max_message_bytes": 20_000}, [], "nothing was sent: take a smaller --batch-size or --block-size"),
        ({"tokens": {"alice": "a" * 32}}, [], "give the client the token this server knows it by (--token), or"),
    ],
    indirect=["server"],
)
def test_what_a_server_refuses(
    server: str,
    options: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", "--data", str(written(tmp_path)), "--output", str(tmp_path / "out"), *SMALL]
    assert told in fail(monkeypatch, capsys, *command, "--trunk", server, *options)


@pytest.mark.slow
def test_a_trunk_that_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with ManagedServer(port=0) as server:

        def stop_behind_a_checkpoint() -> None:
            eventually(lambda: last_checkpoint(out) is not None, timeout_s=100)
            server.stop()

        stopping = threading.Thread(target=stop_behind_a_checkpoint)
        stopping.start()
        command = ["train", "--data", str(written(tmp_path)), "--output", str(out), "--trunk", server.address]
        further = ["--block-size", "32", "--epochs", "1000", "--save-steps", "2", "--reconnect-timeout", "0"]
        monkeypatch.setattr("sys.argv", ["splitlearn", *command, *further])
        with pytest.raises(SystemExit) as caught:
            main()
        stopping.join()
    assert caught.value.code == 1
    said, error = capsys.readouterr()
    assert f"the training has not come to its end; there is {last_checkpoint(out)}: --resume goes on from it\n" in said
    assert f"error: nothing listens at {server.address}" in error
