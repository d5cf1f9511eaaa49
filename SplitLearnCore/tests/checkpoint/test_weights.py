"""Weight files of every layout: which hold a part, which are refused, and that what is loaded is what was saved."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from splitlearn_core import CheckpointError, SplitPoints, load_part, load_split_model
from splitlearn_core.checkpoint.weights import check_complete, needed_tensors
from splitlearn_core.split.cut import Cut
from tests.support.checkpoints import WEIGHTS
from tests.support.models import save_gpt2

PREFIX = "transformer."
INDEX = "model.safetensors.index.json"


def assert_parts_hold(directory: Path, whole: PreTrainedModel) -> None:
    """Every parameter of every part is the whole model's of that name, and together they are all of them."""
    expected = dict(whole.named_parameters())
    found: set[str] = set()
    for part in load_split_model(str(directory)):
        for name, parameter in part.named_parameters():
            assert torch.equal(parameter, expected[name]), name
            found.add(name)
    assert found == set(expected) - {"lm_head.weight"} | (found & {"lm_head.weight"})


def save_as_bin(directory: Path, whole: PreTrainedModel) -> None:
    whole.config.save_pretrained(directory)
    torch.save(whole.state_dict(), directory / "pytorch_model.bin")


def save_as_sharded_bin(directory: Path, whole: PreTrainedModel) -> None:
    whole.config.save_pretrained(directory)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for number, (name, tensor) in enumerate(whole.state_dict().items()):
        files.setdefault(f"pytorch_model-{number % 3}.bin", {})[name] = tensor.clone()
    for file, tensors in files.items():
        torch.save(tensors, directory / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_without_prefix(directory: Path, whole: PreTrainedModel) -> None:
    """Save as the hub's GPT-2: names of the bare base model, and buffers that the model of today does not have."""
    whole.config.save_pretrained(directory)
    tensors = {
        name.removeprefix(PREFIX): tensor.clone()
        for name, tensor in whole.state_dict().items()
        if name != "lm_head.weight"
    }
    tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(whole.config.n_layer)}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def save_sharded_without_prefix(directory: Path, whole: PreTrainedModel) -> None:
    save_without_prefix(directory, whole)
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    weight_map = {name: f"model-{name.removesuffix('.weight').replace('.', '-')}.safetensors" for name in tensors}
    for name, file in weight_map.items():
        save_file({name: tensors[name]}, directory / file, metadata={"format": "pt"})
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_sharded(directory: Path, whole: PreTrainedModel) -> None:
    whole.save_pretrained(directory, max_shard_size="100KB")


LAYOUTS: list[Callable[[Path, PreTrainedModel], None]] = [
    save_sharded,
    save_as_bin,
    save_as_sharded_bin,
    save_without_prefix,
    save_sharded_without_prefix,
]


@pytest.mark.parametrize("save", LAYOUTS)
def test_parts_hold_the_weights_of_every_layout(tmp_path: Path, save: Callable[[Path, PreTrainedModel], None]) -> None:
    whole = save_gpt2(tmp_path / "whole")
    save(tmp_path / "saved", whole)
    assert_parts_hold(tmp_path / "saved", whole)


@pytest.mark.parametrize(
    ("cut", "own"),
    [
        (Cut.bottom, {"wte", "h.0", "h.1"}),
        (Cut.trunk, {"h.2", "h.3"}),
        (Cut.top, {"wte", "h.4", "h.5"}),
        (Cut.client, {"wte", "h.0", "h.1", "h.4", "h.5"}),
    ],
)
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_part_needs_none_of_the_other_parts_tensors(
    cut: Callable[[SplitPoints, int], Cut], own: set[str], prefix: str
) -> None:
    with torch.device("meta"):
        whole = GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=32, n_head=4, vocab_size=97))
    names = [prefix + name.removeprefix(PREFIX) for name, _ in whole.named_parameters()]
    needed = needed_tensors(names, whole, cut(SplitPoints(2, 4), 6))
    small = {f"{prefix}{name}" for name in ("wpe.weight", "ln_f.weight", "ln_f.bias")}
    assert needed - small == {n for n in names if n.removeprefix(prefix).startswith(tuple(f"{o}." for o in own))}
    assert small <= needed


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    for name in ("transformer.h.2.ln_1.weight", "transformer.h.3.mlp.c_fc.weight"):
        del tensors[name]
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors of this part: transformer\.h\.2\.ln_1\.weight, "):
        load_part(str(tmp_path), "trunk")
    load_part(str(tmp_path), "bottom")
    load_part(str(tmp_path), "top")


def test_a_shard_that_is_missing_is_refused(tmp_path: Path) -> None:
    save_gpt2(tmp_path, max_shard_size="100KB")
    name = json.loads((tmp_path / INDEX).read_text())["weight_map"]["transformer.h.2.ln_1.weight"]
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"names the weight file {name}, but it is not there"):
        load_part(str(tmp_path), "trunk")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": {}}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    save_gpt2(tmp_path, max_shard_size="100KB")
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=f"{INDEX} is no index"):
        load_part(str(tmp_path), "trunk")


def test_a_truncated_bin_file_is_refused(tmp_path: Path) -> None:
    save_as_bin(tmp_path, save_gpt2(tmp_path / "whole"))
    file = tmp_path / "pytorch_model.bin"
    content = file.read_bytes()
    for kept in (0, 1000, len(content) - 1000):
        file.write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin is truncated: its {kept} bytes"):
            load_part(str(tmp_path), "trunk")


def header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


ONE_TENSOR = b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "truncated"),
        (b"\x00" * 7, "truncated"),
        (header(b"{}", 3), "truncated"),
        (header(b"{}", 1 << 63), "truncated"),
        (header(ONE_TENSOR), "truncated: 68 of 72 bytes"),
        (header(ONE_TENSOR) + b"123", "truncated: 71 of 72 bytes"),
        (header(b"no header"), "no safetensors file"),
        (header(b"[]"), "no safetensors file"),
        (header(b'{"a": {}}'), "no safetensors file"),
        (header(b'{"a": {"data_offsets": []}}'), "no safetensors file"),
    ],
)
def test_incomplete_files(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / WEIGHTS
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        check_complete(file)
    assert "fetch or copy it again" in str(caught.value)


@pytest.mark.parametrize("content", [header(b"{}"), header(b'{"__metadata__": {}}'), header(ONE_TENSOR) + b"1234"])
def test_complete_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / WEIGHTS
    file.write_bytes(content)
    check_complete(file)


def test_a_directory_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save_gpt2(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert_parts_hold(Path("gpt2"), whole)


def test_single_files_go_before_sharded_ones(tmp_path: Path) -> None:
    whole = save_gpt2(tmp_path)
    save_as_bin(tmp_path, GPT2LMHeadModel(whole.config))
    shutil.copy(tmp_path / "pytorch_model.bin", tmp_path / "pytorch_model-0.bin")
    assert_parts_hold(tmp_path, whole)
