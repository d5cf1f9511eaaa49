"""A training that stops goes on bit for bit, and what comes out of it is an ordinary adapter."""

import copy
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from splitlearn_core import CheckpointError, LocalTrunk, SplitPoints, TrainingError
from splitlearn_core.errors import TrainingLostError
from tests.support.families import Split, tiny_split
from tests.support.programs import run_program
from tests.support.training import batches, fit, whole_weights

FILE = "training.safetensors"
UNDECAYED = [f"model.layers.{number}.self_attn.q_proj.lora_A.default.weight" for number in (0, 2)]


def begin(split: Split, **options: Any) -> Any:
    lora = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.2)
    return split.client.start_training(**{"lora": lora, "lr": 1e-2, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"lora": None}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "sgd", "momentum": 0.9}, marks=pytest.mark.slow),
        pytest.param({"train": ("trunk",)}, marks=pytest.mark.slow),
        pytest.param({"no_weight_decay": UNDECAYED, "weight_decay": 0.1}, marks=pytest.mark.slow),
    ],
)
def test_it_goes_on_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    run = begin(tiny_split("llama"), **options)
    fit(run.model, run.optimizer)
    run.optimizer.param_groups[0]["lr"] = 5e-3
    assert run.save_checkpoint("half", tmp_path) == tmp_path / "half"
    expected = fit(run.model, run.optimizer, clip=0.1)
    weights = {name: tensor.clone() for name, tensor in whole_weights(run).items()}

    torch.manual_seed(2)
    again = begin(tiny_split("llama"), **options)
    fit(again.model, again.optimizer)
    again.resume("half", tmp_path)
    assert again.update_id == run.update_id - (run.update_id // 2)
    assert fit(again.model, again.optimizer, clip=0.1) == expected
    got = whole_weights(again)
    assert got.keys() == weights.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in weights.items())


def test_the_adapter_is_one_of_the_whole_model(tmp_path: Path) -> None:
    split = tiny_split("qwen3")
    whole = copy.deepcopy(split.whole)
    run = begin(split)
    fit(split.client, run.optimizer)
    run.save_adapter(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()
    split.client.eval()
    split.client.trunk = LocalTrunk(run.passes.training.trunk.eval())
    batch = batches(1)[0]
    with torch.no_grad():
        assert torch.equal(split.client(**batch).logits, plain(**batch).logits)
        assert not torch.equal(plain(**batch).logits, split.whole(**batch).logits)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    run = begin(tiny_split("llama"))
    run.save_checkpoint("llama", tmp_path)
    for other, told in (
        (begin(tiny_split("llama"), optimizer="sgd"), "its optimizer is AdamW, here SGD"),
        (begin(tiny_split("llama"), train=("bottom",)), r"its adapter is of \d+ modules, here of \d+"),
        (
            begin(tiny_split("llama"), lora=LoraConfig(r=3, target_modules="all-linear")),
            "its adapter's r is 2, here 3 and its adapter's lora_dropout is 0.2, here 0.0; go on with",
        ),
        (
            begin(tiny_split("llama"), lora=LoraConfig(r=2, target_modules=["q_proj", "k_proj"])),
            r"its adapter is of \d+ modules, here of \d+",
        ),
        (
            begin(tiny_split("llama"), no_weight_decay=UNDECAYED),
            "its weight decay leaves 0 parameters alone, here it is 2",
        ),
        (begin(tiny_split("qwen3")), "its model_type is llama, here qwen3"),
        (begin(tiny_split("llama", SplitPoints(1, 5))), r"its split_points is \[2, 4\], here \[1, 5\]"),
    ):
        with pytest.raises(TrainingError, match=told):
            other.resume("llama", tmp_path)


def test_one_that_is_not_there_or_is_damaged(tmp_path: Path) -> None:
    run = begin(tiny_split("llama"))
    with pytest.raises(CheckpointError, match=r"none is no checkpoint of a training: it has no training.safetensors"):
        run.resume("none", tmp_path)
    where = run.save_checkpoint("cut", tmp_path)
    for num_bytes in ((where / FILE).stat().st_size - 1, 100, 0):
        os.truncate(where / FILE, num_bytes)
        with pytest.raises(CheckpointError, match="is damaged"):
            run.resume("cut", tmp_path)
    save_file({}, where / FILE)
    with pytest.raises(CheckpointError, match="is damaged"):
        run.resume("cut", tmp_path)


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """Have the system refuse larger ones to this process, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    run = begin(tiny_split("llama"))
    where = run.save_checkpoint("tag", tmp_path)
    before = (where / FILE).read_bytes()
    fit(run.model, run.optimizer)
    with (
        files_no_larger_than(len(before) // 2),
        pytest.raises(CheckpointError, match=r"tag could not be written \(.*File too large.*what was there is there"),
    ):
        run.save_checkpoint("tag", tmp_path)
    assert (where / FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tag"]
    run.save_checkpoint("tag", tmp_path)
    assert (where / FILE).read_bytes() != before


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    run = begin(tiny_split("llama"))
    left = tmp_path / ".tag.writing"
    left.mkdir()
    (left / "half.safetensors").write_text("half of one")
    where = run.save_checkpoint("tag", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tag"]
    assert [path.name for path in where.iterdir()] == [FILE]


KILLED_AT_EACH_CALL = """
import os, signal, sys
from pathlib import Path
from splitlearn_core.training.checkpoint import replaced

def write(place, files):
    for name, text in files:
        (place / name).write_text(text)

def killed_at(number, directory, files):
    num_calls = 0
    def count(frame, event, argument):
        nonlocal num_calls
        num_calls += event == "c_call"
        if num_calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
    with_one = os.fork()
    if not with_one:
        sys.setprofile(count)
        with replaced(directory) as place:
            write(place, files)
        sys.setprofile(None)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(with_one, 0)[1])

base, num_files, is_new = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "new"
number, found = 0, set()
while True:
    number += 1
    directory = base / str(number)
    if not is_new:
        with replaced(directory) as place:
            write(place, [(f"file-{n}", "before") for n in range(num_files)])
    was_killed = killed_at(number, directory, [(f"file-{n}", "now") for n in range(num_files)])
    left = {file.name: file.read_text() for file in directory.iterdir()} if directory.exists() else {}
    found.add((len(left), *sorted(set(left.values()))))
    if not was_killed:
        break
print(number > 10, sorted(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_files", "before", "found"),
    [
        (1, "old", [(1, "before"), (1, "now")]),
        (1, "new", [(0,), (1, "now")]),
        (2, "new", [(0,), (2, "now")]),
        # Never one of each: one is taken away before the other is replaced.
        (2, "old", [(1, "before"), (1, "now"), (2, "before"), (2, "now")]),
    ],
)
def test_whoever_is_killed_leaves_the_one_before_or_this_one(
    tmp_path: Path, num_files: int, before: str, found: list[tuple[object, ...]]
) -> None:
    """In a process of its own, which forks one for each call of a function of the system, to be killed there."""
    ran = run_program(["-c", KILLED_AT_EACH_CALL, str(tmp_path), str(num_files), before])
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f"True {found}"


def test_an_adapter_takes_the_place_of_another(tmp_path: Path) -> None:
    for rank in (2, 4):
        run = begin(tiny_split("llama"), lora=LoraConfig(r=rank, target_modules="all-linear"))
        run.save_adapter(tmp_path / "adapter")
        PeftModel.from_pretrained(tiny_split("llama").whole, str(tmp_path / "adapter"))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_training_that_cannot_be_brought_back_is_not_gone_on_with(tmp_path: Path) -> None:
    """The trunk of a resume that fails half-way is at its beginning, and must not train on."""
    run = begin(tiny_split("llama"))
    fit(run.model, run.optimizer)
    where = run.save_checkpoint("tag", tmp_path)
    with safe_open(where / FILE, "pt") as file:
        header = file.metadata()
    tensors = load_file(where / FILE)
    lacking = next(name for name in tensors if name.startswith("trunk: parameter "))
    save_file({name: tensor for name, tensor in tensors.items() if name != lacking}, where / FILE, header)
    with pytest.raises(TrainingError, match="other parameters than those that train"):
        run.resume("tag", tmp_path)
    with pytest.raises(TrainingLostError, match=r"run.resume\(tag\) goes on"):
        fit(run.model, run.optimizer)
    save_file(tensors, where / FILE, header)
    run.resume("tag", tmp_path)
    fit(run.model, run.optimizer)


def test_all_weights_are_no_adapter(tmp_path: Path) -> None:
    run = begin(tiny_split("llama"), lora=None)
    with pytest.raises(TrainingError, match="there is no adapter to save"):
        run.save_adapter(tmp_path)
