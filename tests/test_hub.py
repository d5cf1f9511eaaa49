"""The stand-in hub, used by the real clients: huggingface_hub and transformers."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from tests.support.hub import Hub
from tests.support.models import save_gpt2

LOAD = """
import sys, torch, transformers
torch.set_num_threads(1)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model(torch.arange(5)[None]).logits.double().sum().item())
"""
DOWNLOAD = """
import sys, hashlib, huggingface_hub
path = huggingface_hub.hf_hub_download(*sys.argv[1:3], revision=(sys.argv[3:] or ["main"])[0])
print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""
DESCRIBE = """
import sys, json, huggingface_hub
api = huggingface_hub.HfApi()
info = api.model_info(sys.argv[1], files_metadata=True)
tree = list(api.list_repo_tree(sys.argv[1], recursive=True))
top = [entry.path for entry in api.list_repo_tree(sys.argv[1])]
asked = api.get_paths_info(sys.argv[1], ["model.safetensors"])
print(json.dumps({
    "commit": info.sha,
    "digests": {file.rfilename: file.lfs and file.lfs.sha256 for file in info.siblings},
    "sizes": {file.rfilename: file.size for file in info.siblings},
    "tree": {file.path: [file.size, file.lfs and file.lfs.sha256] for file in tree},
    "top": top,
    "asked": [file.lfs.sha256 for file in asked],
}))
"""


def run(hub: Hub, code: str, *args: str, offline: bool = False) -> str:
    result = hub.run_python(code, *args, offline=offline)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def expected_sum(directory: Path, *, max_shard_size: str = "5GB") -> str:
    model = save_gpt2(directory, max_shard_size=max_shard_size)
    return str(model(torch.arange(5)[None]).logits.double().sum().item())


@pytest.mark.slow
def test_model_loads_and_again_offline(fake_hub: Hub, tmp_path: Path) -> None:
    expected = expected_sum(tmp_path / "model")
    fake_hub.publish("gpt2", tmp_path / "model")
    assert run(fake_hub, LOAD, "gpt2") == expected
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert fake_hub.downloaded("gpt2")["model.safetensors"] == weights

    fake_hub.clear_requests()
    assert run(fake_hub, LOAD, "gpt2", offline=True) == expected
    assert fake_hub.requests == []


@pytest.mark.slow
def test_sharded_model_loads(fake_hub: Hub, tmp_path: Path) -> None:
    expected = expected_sum(tmp_path / "model", max_shard_size="100KB")
    shards = {path.name: path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors")}
    assert len(shards) >= 3
    fake_hub.publish("someone/sharded", tmp_path / "model")
    assert run(fake_hub, LOAD, "someone/sharded") == expected
    downloaded = fake_hub.downloaded("someone/sharded")
    assert {name: num_bytes for name, num_bytes in downloaded.items() if name in shards} == shards


@pytest.mark.slow
def test_renamed_model_loads(fake_hub: Hub, tmp_path: Path) -> None:
    expected = expected_sum(tmp_path / "model")
    fake_hub.publish("openai-community/gpt2", tmp_path / "model")
    fake_hub.rename("gpt2", "openai-community/gpt2")
    assert run(fake_hub, LOAD, "gpt2") == expected


def test_download_goes_on_after_a_cut(fake_hub: Hub, tmp_path: Path) -> None:
    # The client writes to disk in pieces of 10 MiB, and goes on after the last whole piece it has.
    piece, num_bytes, cut = 10 << 20, 12 << 20, 11 << 20
    content = random.Random(0).randbytes(num_bytes)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    fake_hub.publish("gpt2", tmp_path / "model")
    fake_hub.cut_once("model.safetensors", after_bytes=cut)

    assert run(fake_hub, DOWNLOAD, "gpt2", "model.safetensors") == hashlib.sha256(content).hexdigest()
    sent = [(request.status, request.num_bytes) for request in fake_hub.requests if request.num_bytes]
    assert sent == [(200, cut), (206, num_bytes - piece)]


def test_descriptions_agree_with_the_files(fake_hub: Hub, tmp_path: Path) -> None:
    save_gpt2(tmp_path / "model")
    (tmp_path / "model" / "extra").mkdir()
    (tmp_path / "model" / "extra" / "notes.txt").write_text("notes")
    commit = fake_hub.publish("gpt2", tmp_path / "model")
    described = json.loads(run(fake_hub, DESCRIBE, "gpt2"))

    sizes = {
        path.relative_to(tmp_path / "model").as_posix(): path.stat().st_size
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    assert described["commit"] == commit
    assert described["sizes"] == sizes
    assert described["tree"] == {name: [size, described["digests"][name]] for name, size in sizes.items()}
    assert sorted(described["top"]) == sorted({name.split("/")[0] for name in sizes})
    assert described["digests"]["config.json"] is None
    assert described["asked"] == [described["digests"]["model.safetensors"]]
    assert run(fake_hub, DOWNLOAD, "gpt2", "model.safetensors") == described["digests"]["model.safetensors"]


def test_other_weights_are_another_commit(fake_hub: Hub, tmp_path: Path) -> None:
    save_gpt2(tmp_path / "model", seed=0)
    first = fake_hub.publish("gpt2", tmp_path / "model")
    assert fake_hub.publish("gpt2", tmp_path / "model") == first
    save_gpt2(tmp_path / "model", seed=1)
    assert fake_hub.publish("gpt2", tmp_path / "model") != first


def test_a_commit_stays_when_the_branch_goes_on(fake_hub: Hub, tmp_path: Path) -> None:
    digests = {}
    for number, branch in enumerate(("main", "main", "next")):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(bytes([number]))
        commit = fake_hub.publish("gpt2", directory, branch=branch)
        digests[commit] = digests[branch] = hashlib.sha256(bytes([number])).hexdigest()
    assert len(set(digests.values())) == 3
    for revision, digest in digests.items():
        assert run(fake_hub, DOWNLOAD, "gpt2", "model.safetensors", revision) == digest


@pytest.mark.parametrize(
    ("code", "args", "message"),
    [
        pytest.param(
            LOAD,
            ["nobody/nothing"],
            "nobody/nothing is not a local folder and is not a valid model identifier",
            marks=pytest.mark.slow,
        ),
        (DOWNLOAD, ["nobody/nothing", "config.json"], "RepositoryNotFoundError"),
        (DOWNLOAD, ["gpt2", "missing.json"], "EntryNotFoundError"),
        (DOWNLOAD, ["gpt2", "config.json", "v2"], "RevisionNotFoundError"),
    ],
    ids=["load unknown model", "unknown model", "unknown file", "unknown revision"],
)
def test_errors_are_the_hubs_own(fake_hub: Hub, tmp_path: Path, code: str, args: list[str], message: str) -> None:
    save_gpt2(tmp_path / "model")
    fake_hub.publish("gpt2", tmp_path / "model")
    result = fake_hub.run_python(code, *args)
    assert result.returncode != 0
    assert message in result.stderr


def test_nothing_to_publish(fake_hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to publish as gpt2"):
        fake_hub.publish("gpt2", tmp_path)
