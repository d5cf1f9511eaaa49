"""A training that stops goes on bit for bit, and what comes out of it is an ordinary adapter."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from splitlearn_core import CheckpointError, LocalTrunk, SplitPoints, TrainingError
from tests.support.families import Split, tiny_split
from tests.support.training import batches, fit, whole_weights


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
        (begin(tiny_split("llama"), train=("bottom",)), "its modules is"),
        (begin(tiny_split("qwen3")), "its model_type is llama, here qwen3"),
        (begin(tiny_split("llama", SplitPoints(1, 5))), r"its split_points is \[2, 4\], here \[1, 5\]"),
    ):
        with pytest.raises(TrainingError, match=told):
            other.resume("llama", tmp_path)


def test_one_that_is_not_there_or_is_damaged(tmp_path: Path) -> None:
    run = begin(tiny_split("llama"))
    with pytest.raises(CheckpointError, match=r"none is no checkpoint of a training: it has no training.json"):
        run.resume("none", tmp_path)
    where = run.save_checkpoint("cut", tmp_path)
    os.truncate(where / "trunk.safetensors", 100)
    with pytest.raises(CheckpointError, match="is damaged"):
        run.resume("cut", tmp_path)


def test_what_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tiny_split("llama"))
    where = run.save_checkpoint("tag", tmp_path)
    before = (where / "training.json").read_text()
    fit(run.model, run.optimizer)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("splitlearn_core.training.checkpoint.os.fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left on device\); what was there is there still"):
            run.save_checkpoint("tag", tmp_path)
    assert (where / "training.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tag"]
    run.save_checkpoint("tag", tmp_path)
    assert (where / "training.json").read_text() != before


def test_all_weights_are_no_adapter(tmp_path: Path) -> None:
    run = begin(tiny_split("llama"), lora=None)
    with pytest.raises(TrainingError, match="there is no adapter to save"):
        run.save_adapter(tmp_path)
