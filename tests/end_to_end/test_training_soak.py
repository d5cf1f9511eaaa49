"""Trainings one after the other for a long time, over a network that loses every fifth call: every loss is that of the
unsplit model, and neither side grows. `SOAK_MINUTES` says how long `make soak` takes.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model

from splitlearn import SplitModelForCausalLM
from splitlearn_comm.client import FixedDelay
from splitlearn_comm.testing import Direction, Drop, FaultyRelay, eventually
from tests.support.checkpoints import load_whole, save_tiny
from tests.support.training import fit, whole_weights, without_prefix
from tests.support.trunk_process import TrunkProcess

SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
NUM_STEPS = 20
"""Of one training; there are as many trainings as there is time for."""
LOST = 0.11
"""Of the messages each way: a fifth of all calls."""
NUM_WARMING = 3
MAX_GROWN_BYTES = 48 << 20
"""What the allocators of two processes may keep by chance. A training that stays would be more after an hour."""
MAX_NEW_THREADS = 4
SOON = FixedDelay(0.02, max_attempts=50)


class Footprint(NamedTuple):
    """What a process has."""

    rss_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        process = psutil.Process(pid)
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())

    def assert_not_outgrown_by(self, later: "Footprint", who: str) -> None:
        told = f"{who}: {self} became {later}"
        assert later.rss_bytes - self.rss_bytes < MAX_GROWN_BYTES, told
        assert later.descriptors <= self.descriptors + 2, told
        assert later.threads <= self.threads + MAX_NEW_THREADS, told


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules="all-linear")


def losing(seed: int) -> dict[tuple[Direction, int], Drop]:
    random = Random(seed)
    numbers = [(direction, number) for direction in Direction for number in range(20 * NUM_STEPS)]
    return {each: Drop() for each in numbers if random.random() < LOST}


def one_training(model: Path, address: str, seed: int, directory: Path) -> int:
    """Train whole and split, save and go on in between; returns how many messages were lost."""
    torch.manual_seed(seed)
    whole = get_peft_model(load_whole(model), lora())
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-3)
    with FaultyRelay(address, losing(seed)) as relay:
        torch.manual_seed(seed)
        split = SplitModelForCausalLM.from_pretrained(str(model), trunk=relay.address, connection={"retry": SOON})
        run = split.start_training(lora=lora(), lr=1e-3)
        assert fit(split, run.optimizer, 0.05, num_steps=NUM_STEPS) == fit(whole, optimizer, 0.05, num_steps=NUM_STEPS)
        run.save_checkpoint("half", directory)
        fit(split, run.optimizer, num_steps=2)
        run.resume("half", directory)
        assert fit(split, run.optimizer, num_steps=2) == fit(whole, optimizer, num_steps=2)
        expected = {without_prefix(n): p.detach() for n, p in whole.named_parameters() if p.requires_grad}
        got = whole_weights(run)
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
        run.close()
        split.trunk.close()
        return relay.statistics().dropped


def soak(directory: Path, seconds: float) -> None:
    model = save_tiny("llama", directory / "model")
    end_s, num_trainings, num_lost = time.monotonic() + seconds, 0, 0
    with TrunkProcess() as server:
        address = server.start(model)
        while time.monotonic() < end_s or num_trainings < NUM_WARMING + 2:
            num_lost += one_training(model, address, num_trainings, directory)
            num_trainings += 1
            there, here = Footprint.of(server.pid), Footprint.of(os.getpid())
            if num_trainings == NUM_WARMING:
                first_there, first_here = there, here
        # Connections that were given up close in their own time.
        with suppress(AssertionError):
            eventually(lambda: Footprint.of(server.pid).descriptors <= first_there.descriptors)
            eventually(lambda: Footprint.of(os.getpid()).descriptors <= first_here.descriptors)
        first_there.assert_not_outgrown_by(there := Footprint.of(server.pid), "server")
        first_here.assert_not_outgrown_by(here := Footprint.of(os.getpid()), "client")
    print(f"{num_trainings} trainings, {num_lost} messages lost; server {first_there} -> {there}, client {here}")
    assert num_lost > num_trainings


@pytest.mark.slow
def test_a_minute_of_trainings_leaves_nothing_behind(tmp_path: Path) -> None:
    soak(tmp_path, seconds=45)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_MINUTES * 60 * 2 + 600)
def test_an_hour_of_trainings_leaves_nothing_behind(tmp_path: Path) -> None:
    soak(tmp_path, seconds=SOAK_MINUTES * 60)
