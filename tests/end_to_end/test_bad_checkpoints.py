"""Models that are not there, or not whole: the same words whoever loads them, client or server."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from splitlearn import SplitModelForCausalLM
from splitlearn.quickstart import load_split_model
from splitlearn_comm import (
    AddressInUseError,
)
from splitlearn_core import CheckpointError
from splitlearn_manager import ManagedServer
from tests.support.checkpoints import WEIGHTS
from tests.support.hub import Hub
from tests.support.served import Served, assert_says

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("serves_on")


LOAD = """
import sys
from splitlearn import SplitModelForCausalLM
from splitlearn_core import CheckpointError
try:
    SplitModelForCausalLM.from_pretrained(sys.argv[1])
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("offline", [False, True])
def test_a_model_that_does_not_exist(fake_hub: Hub, offline: bool) -> None:
    result = fake_hub.run_python(LOAD, "nobody/nothing", offline=offline)
    assert result.returncode == 0, result.stderr
    reason = "the hub cannot be reached" if offline else "the hub does not give it"
    assert result.stdout.startswith("no model 'nobody/nothing': it is not a directory here, ")
    assert "not in the local hub cache" in result.stdout
    assert reason in result.stdout
    assert "check the name" in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    for path in (str(tmp_path / "missing"), "./no/such/model"):
        with pytest.raises(CheckpointError) as caught:
            SplitModelForCausalLM.from_pretrained(path)
        assert_says(caught.value, f"no model {path!r}", "not a directory", "check the path")


def load_ways(directory: Path, address: str) -> list[Callable[[], object]]:
    return [
        lambda: SplitModelForCausalLM.from_pretrained(str(directory)),
        lambda: SplitModelForCausalLM.from_pretrained(str(directory), trunk=address),
        lambda: load_split_model(str(directory)),
        lambda: ManagedServer(str(directory), port=0),
    ]


def test_a_directory_without_a_model(served: Served, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    for load in load_ways(tmp_path, served.address):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert_says(caught.value, str(tmp_path), "config.json", "notes.txt")


def test_a_directory_without_weights(served: Served, tmp_path: Path) -> None:
    shutil.copy(served.directory / "config.json", tmp_path)
    for load in load_ways(tmp_path, served.address):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert_says(caught.value, str(tmp_path), "no weights", "model.safetensors", "found config.json")


@pytest.mark.parametrize("kept", [0, 5, 100, -5000, -1])
def test_a_truncated_safetensors_file(served: Served, tmp_path: Path, kept: int) -> None:
    directory = tmp_path / "truncated"
    shutil.copytree(served.directory, directory)
    content = (served.directory / WEIGHTS).read_bytes()[:kept]
    (directory / WEIGHTS).write_bytes(content)
    for load in load_ways(directory, served.address):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert_says(caught.value, str(directory / WEIGHTS), "truncated", str(len(content)), "fetch or copy it again")


def test_a_port_in_use(served: Served) -> None:
    port = int(served.address.rpartition(":")[2])
    with pytest.raises(AddressInUseError) as caught:
        ManagedServer(str(served.directory), port=port)
    assert_says(caught.value, f"127.0.0.1:{port}", "in use", "port=0")


def test_a_port_that_was_taken_while_the_model_was_loaded(served: Served) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = int(other.getsockname()[1])
    server = ManagedServer(str(served.directory), port=port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(AddressInUseError) as caught:
            server.start()
    assert_says(caught.value, f"127.0.0.1:{port}", "in use", "port=0")
    server.stop()
