"""A training that goes on from its checkpoint, whoever is killed, and that can kill itself or its server at any moment.

It keeps a checkpoint in a directory, and puts the adapter there when it has ended. It says what it does in lines: `new`
or `resumed UPDATE`, `saved UPDATE`, `lost UPDATE`, and in the end `calls KIND NUMBER`: how many there were.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from splitlearn import SplitModelForCausalLM
from splitlearn_comm.client import FixedDelay
from splitlearn_core.training.run import TrainingRun
from tests.support.training import batches

NUM_STEPS = 12
STEPS_A_CHECKPOINT = 3
TAG = "last"
PATIENT = FixedDelay(0.02, max_attempts=500)
"""A server that was killed is started again."""


class Killer:
    """Counts the calls of Python functions and of built-in ones, and sends SIGKILL at a chosen one.

    Args:
        kind: of what the call is a part: a step, or a save.
        number: which call, from 1; 0 for none.
        process: to be killed.
    """

    def __init__(self, kind: str, number: int, process: int) -> None:
        self.num_calls = {"step": 0, "save": 0}
        self._chosen = (kind, number)
        self._process = process

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count the calls of this block."""

        def count(frame: FrameType, event: str, argument: Any) -> None:
            if event in ("call", "c_call"):
                self.num_calls[kind] += 1
                if (kind, self.num_calls[kind]) == self._chosen:
                    os.kill(self._process, signal.SIGKILL)

        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(None)


def begin(model: Any) -> TrainingRun:
    torch.manual_seed(5)
    lora = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], lora_dropout=0.1)
    run: TrainingRun = model.start_training(lora=lora, lr=1e-2)
    return run


def go_on(run: TrainingRun, directory: Path) -> TrainingRun:
    """Resume from the checkpoint; where there is none yet, begin anew."""
    if (directory / TAG).exists():
        run.resume(TAG, directory)
        tell("resumed", run.update_id)
        return run
    tell("new")
    run.close()
    return begin(run.model)


def do_step(run: TrainingRun, batch: dict[str, torch.Tensor]) -> None:
    run.model(**batch).loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 0.05)
    run.optimizer.step()
    run.optimizer.zero_grad()


def train(run: TrainingRun, directory: Path, killer: Killer) -> TrainingRun:
    """Train to the end; a checkpoint after every third step."""
    run.model.train()
    data = batches(NUM_STEPS)
    while run.update_id < NUM_STEPS:
        try:
            with killer.during("step"):
                do_step(run, data[run.update_id])
            if run.update_id % STEPS_A_CHECKPOINT == 0:
                with killer.during("save"):
                    run.save_checkpoint(TAG, directory)
                tell("saved", run.update_id)
        except ConnectionError:
            tell("lost", run.update_id)
            run = go_on(run, directory)
    return run


def tell(*words: object) -> None:
    print(*words, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Be the program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--during", choices=["step", "save"], default="step")
    parser.add_argument("--call", type=int, default=0)
    parser.add_argument("--kill", type=int, default=os.getpid())
    given = parser.parse_args(arguments)
    model: Any = SplitModelForCausalLM.from_pretrained(given.model, trunk=given.address, connection={"retry": PATIENT})
    killer = Killer(given.during, given.call, given.kill)
    run = train(go_on(begin(model), given.directory), given.directory, killer)
    run.save_adapter(given.directory / "adapter")
    for kind, number in killer.num_calls.items():
        tell("calls", kind, number)
    model.trunk.close()


if __name__ == "__main__":
    main(sys.argv[1:])
