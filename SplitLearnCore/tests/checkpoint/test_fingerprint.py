"""The fingerprint: the same for the same model wherever it lies, another for any difference that counts."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlearn_core import CheckpointError
from splitlearn_core.checkpoint.fingerprint import fingerprint, sha256_of
from splitlearn_core.checkpoint.memory import MEMORY_FILE, cache_directory, remembered
from splitlearn_core.checkpoint.source import locate
from splitlearn_core.checkpoint.weights import read_weight_index
from tests.support.checkpoints import WEIGHTS, change_one_value
from tests.support.checkpoints import sha256_of as expected_sha256_of
from tests.support.models import save_gpt2


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is remembered yet."""
    monkeypatch.setenv("SPLITLEARN_CACHE", str(tmp_path / "memory"))
    return tmp_path / "memory"


def fingerprint_of(directory: Path) -> str:
    source = locate(str(directory))
    return fingerprint(source, read_weight_index(source))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_copies_have_the_same(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "one")
    save_gpt2(tmp_path / "two")
    assert fingerprint_of(tmp_path / "one") == fingerprint_of(tmp_path / "two")
    assert len(fingerprint_of(tmp_path / "one")) == 64


def test_one_weight_value_makes_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_gpt2(tmp_path / name)
    change_one_value(tmp_path / "two", "transformer.h.3.mlp.c_fc.bias")
    assert (tmp_path / "one" / WEIGHTS).stat().st_size == (tmp_path / "two" / WEIGHTS).stat().st_size
    assert fingerprint_of(tmp_path / "one") != fingerprint_of(tmp_path / "two")


def test_every_shard_counts(tmp_path: Path) -> None:
    save_gpt2(tmp_path, max_shard_size="100KB")
    before = fingerprint_of(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fingerprint_of(tmp_path) != before
        shard.write_bytes(content)
    assert fingerprint_of(tmp_path) == before


@pytest.mark.parametrize(
    "changes", [{"n_head": 2}, {"activation_function": "relu"}, {"layer_norm_epsilon": 1e-6}, {"rope": {"theta": 1.0}}]
)
def test_configuration_that_changes_the_result_makes_another(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_gpt2(tmp_path)
    before = fingerprint_of(tmp_path)
    edit_config(tmp_path, **changes)
    assert fingerprint_of(tmp_path) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"torch_dtype": "float16"},
        {"transformers_version": "4.0.0"},
        {"_name_or_path": "somewhere/else"},
        {"architectures": ["GPT2Model"]},
        {"use_cache": False},
    ],
)
def test_configuration_that_does_not_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_gpt2(tmp_path)
    before = fingerprint_of(tmp_path)
    edit_config(tmp_path, **changes)
    assert fingerprint_of(tmp_path) == before


def test_order_and_layout_of_the_configuration_change_nothing(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    edit_config(tmp_path, text_config={"theta": 1.0, "dtype": "float32"})
    before = fingerprint_of(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["dtype"] = "float16"  # left out at every depth
    (tmp_path / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    assert fingerprint_of(tmp_path) == before


def test_files_beside_the_weights_change_nothing(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    before = fingerprint_of(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "generation_config.json").unlink()
    assert fingerprint_of(tmp_path) == before


def test_a_truncated_file_has_none(tmp_path: Path) -> None:
    save_gpt2(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        fingerprint_of(tmp_path)


def write_keeping_times(path: Path, content: bytes) -> None:
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"first")
    digest = sha256_of(file)
    assert digest == expected_sha256_of(file)
    # Other content behind the same size and times would be read now if it were read at all.
    write_keeping_times(file, b"other")
    assert sha256_of(file) == digest
    file.write_bytes(b"longer than before")
    assert sha256_of(file) == expected_sha256_of(file) != digest


def test_a_changed_time_is_enough_to_read_again(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"first")
    digest = sha256_of(file)
    write_keeping_times(file, b"other")
    os.utime(file, ns=(0, 0))
    assert sha256_of(file) == expected_sha256_of(file) != digest


def test_the_hubs_name_of_a_large_file_is_its_digest(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / ("0123456789abcdef" * 4)
    blob.write_bytes(b"never read")
    assert sha256_of(blob) == blob.name


def break_nothing(memory: Path) -> None:
    """Leave the memory as it is."""


def break_content(memory: Path) -> None:
    memory.mkdir()
    (memory / MEMORY_FILE).write_text("{broken")


def break_kind(memory: Path) -> None:
    memory.mkdir()
    (memory / MEMORY_FILE).write_text("[1, 2]")


def break_directory(memory: Path) -> None:
    memory.write_text("a file where the directory should be")


@pytest.mark.parametrize("break_it", [break_nothing, break_content, break_kind, break_directory])
def test_a_broken_memory_only_costs_time(own_memory: Path, break_it: Callable[[Path], None]) -> None:
    break_it(own_memory)
    answers = iter(("first", "second"))
    assert remembered("key", lambda: next(answers)) == "first"
    assert remembered("key", lambda: next(answers)) == ("second" if break_it is break_directory else "first")


def test_several_things_are_remembered(own_memory: Path) -> None:
    assert remembered("a", lambda: "1") == "1"
    assert remembered("b", lambda: "2") == "2"
    assert remembered("a", lambda: "changed") == "1"
    assert [path.name for path in own_memory.iterdir()] == [MEMORY_FILE]


def test_where_things_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLEARN_CACHE", "/chosen")
    assert cache_directory() == Path("/chosen")
    monkeypatch.delenv("SPLITLEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_directory() == Path("/caches/splitlearn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "splitlearn"
