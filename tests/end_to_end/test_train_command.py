"""`splitlearn train`, as people start it."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from splitlearn.cli.app import app
from splitlearn_core.builtin import builtin_directory
from tests.end_to_end.test_command_line import SPLITLEARN, fail
from tests.support.checkpoints import load_whole
from tests.support.programs import run_program, serving_program

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
    assert "checkpoint-4 is at update 4 already, and max_steps is 4" in again[0].stderr
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

    def train(output: Path, *further: str) -> dict[str, torch.Tensor]:
        result = CliRunner().invoke(app, ["train", "--data", str(data), "--output", str(output), *SMALL, *further])
        assert result.exit_code == 0, result.output
        return adapter_of(output)

    straight = train(tmp_path / "straight")
    for path in (tmp_path / "straight" / "checkpoint-4").iterdir():
        if path.is_file():
            path.unlink()  # as if it had been killed while it wrote the last one
    again = train(tmp_path / "straight", "--resume")
    assert all(torch.equal(again[name], tensor) for name, tensor in straight.items())


@pytest.mark.parametrize(
    ("arguments", "text", "told"),
    [
        (["--data", "DATA"], "", "novel.txt is empty: expected text to learn from"),
        ([], TEXT, "--data names the text to learn from: a .txt or a .jsonl"),
        (["--data", "DATA", "--block-size", "99999"], TEXT, r"--block-size 99999 is more than the \d+ tokens"),
        (["--data", "DATA", "--precision", "int8"], TEXT, "--precision takes float32, bf16 or fp16; got 'int8'"),
        (["--data", "DATA", "--parts", "head"], TEXT, "train= takes one or more of bottom, trunk, top; got head"),
        (["--data", "DATA", "--report-to", "nowhere"], TEXT, "--report-to nowhere does not go with this model"),
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
    names: dict[str, Any] = {"DATA": str(written(tmp_path, text)), "EMPTY": str(tmp_path / "empty")}
    given = [names.get(argument, argument) for argument in arguments]
    message = fail(monkeypatch, capsys, "train", "--output", str(tmp_path / "out"), *given)
    assert re.search(told, message), message
