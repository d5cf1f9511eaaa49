"""Mixed load for a long time: memory, descriptors and threads of the server stay as they are, every answer is right.

Rounds of load, and a rest after each, in which every client is gone and every session has expired: what is left then is
what the server keeps for ever. The first round is for warming up. `SOAK_MINUTES` says how long `make soak` takes.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from splitlearn_comm import GRPCComputeClient
from splitlearn_comm.testing import ServerProcess, eventually
from tests.support.mixed_load import ACTIVITIES, ASYNC_ACTIVITIES, hang_up, load
from tests.support.soaked_host import IN_USE, SESSIONS, TIDIED

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[3]
SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
MAX_GROWN_IN_USE_BYTES = 8 << 20
"""Of what is allocated and not freed. Sessions of 256 KiB that stay would be more after one round."""
MAX_GROWN_BYTES = 48 << 20
"""Of what the process has of the system: what was freed between things that stay for ever cannot be given back, and how
much that is rises and falls by chance."""
MAX_NEW_THREADS = 4
"""gRPC keeps a pool of its own, which follows the load."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What the server has at rest."""

    rss_bytes: int
    in_use_bytes: int
    """Allocated and not freed, as far as the C library tells; else 0."""
    descriptors: int
    threads: int

    def __str__(self) -> str:
        memory = f"{self.rss_bytes / 2**20:.1f} MiB, {self.in_use_bytes / 2**20:.1f} of them in use"
        return f"{memory}, {self.descriptors} descriptors, {self.threads} threads"


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    monkeypatch.chdir(ROOT)  # where the other process finds what it serves
    # Long enough for a client to come back on a machine that has other things to do, too.
    with ServerProcess("tests.support.soaked_host:SoakedHost", detached_session_timeout_s=3) as process:
        yield process


@contextmanager
def loader(address: str) -> Iterator[subprocess.Popen[str]]:
    """A process that makes a load when it is told to."""
    command = [sys.executable, "-m", "tests.support.mixed_load", address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as loading:
        try:
            yield loading
            assert loading.stdin is not None
            loading.stdin.close()
            assert loading.wait(60) == 0
        finally:
            loading.kill()


def one_round(address: str, other: subprocess.Popen[str], seconds: float, seed: int) -> Counter[str]:
    """Two clients here and three in the other process, at the same time; returns what they did."""
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write(f"{seconds} {seed}\n")
    other.stdin.flush()
    with ThreadPoolExecutor(2) as pool:
        here = [pool.submit(load, address, seconds, seed + number) for number in (10, 11)]
        done = sum((part.result() for part in here), Counter[str]())
    line = other.stdout.readline()
    assert line, "the other process failed; its error is above"
    return done + Counter(json.loads(line))


def told(address: str, name: str) -> int:
    """What the host says about itself."""
    with GRPCComputeClient(address) as client:
        return int(client.get_info().extra[name])


def tidy_up(process: ServerProcess) -> None:
    """Have the server give back what it does not need."""
    before = told(process.address, TIDIED)
    os.kill(process.pid, signal.SIGUSR1)
    eventually(lambda: told(process.address, TIDIED) > before)


def at_rest(process: ServerProcess, descriptors: int) -> Footprint:
    """Wait until no session is left, and no more descriptors than that: no connection, then."""
    watched = psutil.Process(process.pid)
    hang_up()
    with suppress(AssertionError):
        eventually(lambda: told(process.address, SESSIONS) == 0)
    assert told(process.address, SESSIONS) == 0, "the host still has sessions, and their clients are gone"
    tidy_up(process)
    with suppress(AssertionError):
        eventually(lambda: watched.num_fds() <= descriptors)
    found = watched.num_fds()
    assert found <= descriptors, f"the server has {found} descriptors, and had {descriptors} before any client came"
    return Footprint(
        rss_bytes=watched.memory_info().rss,
        in_use_bytes=told(process.address, IN_USE),
        descriptors=found,
        threads=watched.num_threads(),
    )


def soak(process: ServerProcess, rounds: int, seconds: float) -> None:
    with loader(process.address) as other:
        idle_descriptors = psutil.Process(process.pid).num_fds()
        done = one_round(process.address, other, seconds, seed=0)
        first = at_rest(process, idle_descriptors)
        print(f"after warming up: {first}")
        for number in range(1, rounds + 1):
            done += one_round(process.address, other, seconds, seed=100 * number)
            last = at_rest(process, idle_descriptors)
            print(f"after round {number}: {last}", flush=True)
            assert last.rss_bytes - first.rss_bytes < MAX_GROWN_BYTES, f"{first} became {last} after {done}"
            grown_bytes = last.in_use_bytes - first.in_use_bytes
            assert grown_bytes < MAX_GROWN_IN_USE_BYTES, f"{first} became {last} after {done}"
            assert last.threads <= first.threads + MAX_NEW_THREADS, f"{first} became {last} after {done}"
    print(f"{done.total()} activities: {dict(done)}")
    assert done.keys() == {activity.__name__ for activity in (*ACTIVITIES, *ASYNC_ACTIVITIES)}


@pytest.mark.slow
def test_half_a_minute_leaves_nothing_behind(process: ServerProcess) -> None:
    soak(process, rounds=2, seconds=6)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_MINUTES * 60 * 2 + 600)
def test_half_an_hour_leaves_nothing_behind(process: ServerProcess) -> None:
    soak(process, rounds=max(3, round(SOAK_MINUTES) - 1), seconds=min(60, SOAK_MINUTES * 15))
