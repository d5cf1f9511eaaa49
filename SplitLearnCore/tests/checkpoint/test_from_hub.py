"""Parts from the stand-in hub: only the files that hold them, offline afterwards, with the fingerprint of a local copy.

The client of a hub runs in a process of its own; each process loads several parts, each from a repository of its own,
so that what one downloads is not there for the other.
"""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from splitlearn_core import load_part
from tests.support.hub import Hub
from tests.support.models import save_gpt2
from tests.support.programs import run_program

pytestmark = pytest.mark.slow

PARTS = ("bottom", "trunk", "top")
EMBEDDINGS = {"bottom": ("embed_tokens", "wte"), "trunk": (), "top": ("lm_head",)}
ALL_PARTS = tuple(f"someone/{part}|{part}" for part in PARTS)
LAYERS = {"bottom": {0, 1}, "trunk": {2, 3}, "top": {4, 5}}

LOAD = """
import json, sys, torch
from splitlearn_core import load_part
torch.set_num_threads(1)
def describe(part):
    sums = {name: tensor.double().sum().item() for name, tensor in part.named_parameters()}
    return {"fingerprint": part.fingerprint, "sums": sums}
print(json.dumps([describe(load_part(*argument.split("|"))) for argument in sys.argv[1:]]))
"""


CACHE = """
import sys, huggingface_hub
for file in sys.argv[2:]:
    huggingface_hub.hf_hub_download(sys.argv[1], file)
"""
LOCATE = """
import sys, time
from splitlearn_core import CheckpointError
from splitlearn_core.checkpoint.source import locate
started = time.monotonic()
try:
    locate(*sys.argv[1:])
except CheckpointError as error:
    print(error)
print(time.monotonic() - started)
"""


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of what a hub said to another test."""
    monkeypatch.setenv("SPLITLEARN_CACHE", str(tmp_path / "memory"))


def load(hub: Hub, *arguments: str, offline: bool = False) -> list[dict[str, Any]]:
    """Load `id|part` in a process that uses the hub; returns what each part is."""
    result = hub.run_python(LOAD, *arguments, offline=offline)
    assert result.returncode == 0, result.stderr
    described: list[dict[str, Any]] = json.loads(result.stdout)
    return described


def describe_local(directory: Path, part: Any) -> dict[str, Any]:
    loaded = load_part(str(directory), part)
    sums = {name: tensor.double().sum().item() for name, tensor in loaded.named_parameters()}
    return {"fingerprint": loaded.fingerprint, "sums": sums}


def save_untied(directory: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=97, num_hidden_layers=6, tie_word_embeddings=False, **sizes)
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="8KB")


def layer_of(tensor: str) -> int | None:
    numbers = [int(word) for word in tensor.split(".") if word.isdigit()]
    return numbers[0] if numbers else None


def expected_files(directory: Path, part: str, *, is_tied: bool) -> set[str]:
    """The shards that hold a part's tensors, by names alone: its layers, and embeddings only where they are its own."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    own = EMBEDDINGS[part] + (("wte",) if is_tied and part == "top" else ())
    foreign = {name for names in EMBEDDINGS.values() for name in names} - set(own)
    return {
        file
        for tensor, file in index.items()
        if layer_of(tensor) in LAYERS[part] or (layer_of(tensor) is None and not foreign & set(tensor.split(".")))
    }


def check_parts_from_hub(hub: Hub, directory: Path, *, is_tied: bool) -> list[dict[str, Any]]:
    """Load each part from a repository of its own, and hold what was sent and what was loaded against the directory."""
    for part in PARTS:
        hub.publish(f"someone/{part}", directory)
    parts = load(hub, *ALL_PARTS)
    shards = {path.name for path in directory.glob("*.safetensors")}
    assert len(shards) > 12
    for part, got in zip(PARTS, parts, strict=True):
        sent = hub.downloaded(f"someone/{part}")
        assert set(sent) & shards == expected_files(directory, part, is_tied=is_tied)
        assert all(sent[name] == (directory / name).stat().st_size for name in set(sent) & shards)
        # The same tensors as from the directory, and the same fingerprint, though no end holds all files.
        assert got == describe_local(directory, part)
    assert len({part["fingerprint"] for part in parts}) == 1
    hub.clear_requests()
    return parts


def test_only_the_files_that_hold_a_part_are_downloaded_and_only_once(fake_hub: Hub, tmp_path: Path) -> None:
    save_gpt2(tmp_path / "model", max_shard_size="8KB")
    parts = check_parts_from_hub(fake_hub, tmp_path / "model", is_tied=True)
    assert load(fake_hub, *ALL_PARTS, offline=True) == parts
    assert fake_hub.requests == []


def test_what_was_downloaded_loads_offline(fake_hub: Hub, tmp_path: Path) -> None:
    save_untied(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()  # many a model has none
    parts = check_parts_from_hub(fake_hub, tmp_path / "model", is_tied=False)
    assert load(fake_hub, *ALL_PARTS) == parts
    assert fake_hub.requests == []  # not even for the file that is not there
    # A cache that someone copied knows which files there are, and not which there are none.
    for directory in fake_hub.home.glob("hub/*/.no_exist"):
        shutil.rmtree(directory)
    assert load(fake_hub, *ALL_PARTS, offline=True) == parts


def test_a_download_that_breaks_goes_on(fake_hub: Hub, tmp_path: Path) -> None:
    # The client of the hub goes on after the last whole 10 MiB that it has.
    directory = tmp_path / "model"
    save_gpt2(directory, hidden_size=128, vocabulary_size=25_000)
    num_bytes = (directory / "model.safetensors").stat().st_size
    assert num_bytes > 12 << 20
    fake_hub.publish("gpt2", directory)
    fake_hub.cut_once("model.safetensors", after_bytes=11 << 20)
    assert load(fake_hub, "gpt2|bottom") == [describe_local(directory, "bottom")]
    sent = [(r.status, r.num_bytes) for r in fake_hub.requests if r.file == "model.safetensors" and r.num_bytes]
    assert sent == [(200, 11 << 20), (206, num_bytes - (10 << 20))]


def fill_cache(hub: Hub, model_id: str, *files: str) -> None:
    """Download some files, as another program may have done."""
    result = hub.run_python(CACHE, model_id, *files)
    assert result.returncode == 0, result.stderr


def test_the_same_commit_has_the_same_fingerprint_whatever_the_cache_holds(fake_hub: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    whole = save_gpt2(directory)
    torch.save(whole.state_dict(), directory / "pytorch_model.bin")
    fake_hub.publish("gpt2", directory)
    fill_cache(fake_hub, "gpt2", "config.json", "pytorch_model.bin")
    assert load(fake_hub, "gpt2|trunk") == [describe_local(directory, "trunk")]
    assert "model.safetensors" in fake_hub.downloaded("gpt2")


def test_without_the_hub_the_cache_has_to_do(fake_hub: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    whole = save_gpt2(directory)
    torch.save(whole.state_dict(), directory / "pytorch_model.bin")
    fake_hub.publish("gpt2", directory)
    fill_cache(fake_hub, "gpt2", "config.json", "pytorch_model.bin")
    (directory / "model.safetensors").rename(tmp_path / "elsewhere")
    assert load(fake_hub, "gpt2|trunk", offline=True) == [describe_local(directory, "trunk")]


def test_a_hub_that_is_not_there_is_given_up_soon(fake_hub: Hub, tmp_path: Path) -> None:
    environment = fake_hub.environment() | {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    said, elapsed_s = run_locate(environment, "nobody/nothing")
    assert "config.json of it is not in the local hub cache, and the hub cannot be reached" in said
    assert elapsed_s < 5  # six tries of huggingface_hub's own take 23 s


def test_a_revision_that_is_not_there(fake_hub: Hub, tmp_path: Path) -> None:
    save_gpt2(tmp_path / "model")
    fake_hub.publish("gpt2", tmp_path / "model")
    said, _ = run_locate(fake_hub.environment(), "gpt2", "v9")
    assert said == "the hub's gpt2 has no revision 'v9': expected one of its branches, tags or commits"


def run_locate(environment: dict[str, str], *arguments: str) -> tuple[str, float]:
    result = run_program(["-c", LOCATE, *arguments], environment)
    assert result.returncode == 0, result.stderr
    said, elapsed_s = result.stdout.splitlines()
    return said, float(elapsed_s)


def closed_port() -> int:
    """Return a port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
