"""A training whose client or server is killed, at any moment, ends with the weights that it would have had.

`make faults` kills each of them ten times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.support.models import save_gpt2
from tests.support.serve_processes import ServeProcesses, quiet_port

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.faults) for seed in range(1, 10))]
pytestmark = pytest.mark.slow


class World(NamedTuple):
    """A model on disk, processes that serve it, and how its training goes where nobody is killed."""

    processes: ServeProcesses
    model: Path
    adapter: dict[str, torch.Tensor]
    num_calls: dict[str, int]
    """Calls in its steps, and in its saves."""


def adapter_in(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter" / "adapter_model.safetensors")


def told_in(output: Path, word: str) -> list[int]:
    """The numbers of the lines that begin with a word."""
    lines = [line.split() for line in output.read_text().splitlines()]
    return [int(line[-1]) for line in lines if line[:1] == [word]]


@contextmanager
def serving(processes: ServeProcesses) -> Iterator[int]:
    port = quiet_port()
    processes.start(port)
    processes.wait_for(port)
    yield port
    assert processes.end(port) == 0, processes.output(port)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("undisturbed")
    save_gpt2(directory / "model")
    with ServeProcesses(directory, {}, [str(directory / "model")]) as processes:
        output = directory / "loop.txt"
        with serving(processes) as port:
            loop = processes.begin_loop(output, f"127.0.0.1:{port}", str(directory / "model"), str(directory))
            assert processes.status_of(loop) == 0, output.read_text()
        assert told_in(output, "saved") == [3, 6, 9, 12]
        calls = [line.split() for line in output.read_text().splitlines() if line.startswith("calls")]
        yield World(processes, directory / "model", adapter_in(directory), {c[1]: int(c[2]) for c in calls})


def moment(world: World, seed: int, who: str) -> list[str]:
    """Draw where to kill: half of the time in a save, which is the smaller part."""
    random = Random(f"{who} {seed}")
    during = random.choice(["step", "save"])
    # Not the last tenth: it need not make exactly as many calls each time.
    return ["--during", during, "--call", str(random.randint(1, int(0.9 * world.num_calls[during])))]


def assert_same_adapter(world: World, directory: Path) -> None:
    got = adapter_in(directory)
    assert got.keys() == world.adapter.keys()
    for name, tensor in world.adapter.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("seed", SEEDS)
def test_the_server_is_killed(world: World, tmp_path: Path, seed: int) -> None:
    """The client goes on with the next server at the same address, in the same process."""
    output = tmp_path / "loop.txt"
    with serving(world.processes) as port:
        kill = [*moment(world, seed, "server"), "--kill", str(world.processes.pid(port))]
        loop = world.processes.begin_loop(output, f"127.0.0.1:{port}", str(world.model), str(tmp_path), *kill)
        world.processes.wait_killed(port)
        world.processes.start(port)
        world.processes.wait_for(port)
        assert world.processes.status_of(loop) == 0, output.read_text()
    assert len(told_in(output, "lost")) == 1
    assert_same_adapter(world, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_client_is_killed(world: World, tmp_path: Path, seed: int) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    with serving(world.processes) as port:
        arguments = [f"127.0.0.1:{port}", str(world.model), str(tmp_path)]
        killed = world.processes.begin_loop(first, *arguments, *moment(world, seed, "client"))
        assert world.processes.status_of(killed) == -9, first.read_text()
        again = world.processes.begin_loop(second, *arguments)
        assert world.processes.status_of(again) == 0, second.read_text()
    # Begun anew it would end with the same weights: what was saved must be there.
    saved = told_in(first, "saved")
    assert max(told_in(second, "resumed"), default=0) >= max(saved, default=0)
    assert_same_adapter(world, tmp_path)
