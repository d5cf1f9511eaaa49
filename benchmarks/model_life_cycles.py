"""What is left of models that came, were used and went, some of which could not be loaded.

A server in a process of its own loads a tiny model in a process of that model's own, a client opens a session and
steps, the model is unloaded; every fifth load fails, in the middle of its weights. Counted after each cycle are the
server's process and whatever processes it still has.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.processes import NUM_THREADS, child
from benchmarks.servers import serve_models
from splitlearn_comm import GRPCComputeClient
from splitlearn_manager.control import ControlClient
from splitlearn_manager.errors import ModelLoadError

FAILS_EVERY = 5
MARK = 0.02
HIDDEN_BTH = torch.ones(1, 4, 32)


class Held(NamedTuple):
    """What a server and its processes hold."""

    resident_bytes: int
    num_descriptors: int
    num_threads: int
    num_processes: int


def held_by(server: psutil.Process) -> Held:
    """Return what a server holds now."""
    family = [server, *server.children(recursive=True)]
    return Held(sum(each.memory_info().rss for each in family), server.num_fds(), server.num_threads(), len(family) - 1)


def save_tiny(directory: Path) -> Path:
    """Write a checkpoint of 90 thousand parameters."""
    config = GPT2Config(n_layer=6, n_embd=32, n_head=4, vocab_size=97, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(directory)
    return directory


def cut_short(directory: Path) -> Path:
    """Take away the end of a checkpoint's weights."""
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return directory


def load_use_unload(control: ControlClient, address: str, model: Path) -> bool:
    """Do one cycle; returns whether the model could be loaded."""
    try:
        control.load_model("tiny", {"model": str(model), "num_threads": NUM_THREADS})
    except ModelLoadError:
        return False
    with GRPCComputeClient(address, model="tiny") as client, client.session() as session:
        session.step(HIDDEN_BTH)
        session.step(HIDDEN_BTH[:, :1])
    control.unload_model("tiny")
    return True


def print_cycles(directory: Path, num_cycles: int) -> None:
    """Print what the server holds before and after."""
    good, bad = save_tiny(directory / "good"), cut_short(save_tiny(directory / "bad"))
    held, num_failed = [], 0
    with child(partial(serve_models, specs=())) as pipe:
        address, server = pipe.recv(), psutil.Process(pipe.recv())
        with ControlClient(address) as control:
            for cycle in range(num_cycles):
                is_to_fail = cycle % FAILS_EVERY == FAILS_EVERY - 1
                was_loaded = load_use_unload(control, address, bad if is_to_fail else good)
                assert was_loaded is not is_to_fail
                num_failed += is_to_fail
                held.append(held_by(server))
    first, last = held[min(FAILS_EVERY, num_cycles) - 1], held[-1]
    drift = last.resident_bytes / first.resident_bytes - 1
    print(
        f"  {num_cycles} cycles, {num_failed} failed: memory {first.resident_bytes / 1e6:.1f} MB after the fifth, "
        f"{last.resident_bytes / 1e6:.1f} MB after the last, drift {drift:+.2%} (mark: under {MARK:.0%}): "
        f"{'met' if drift < MARK else 'MISSED'}; most {max(each.resident_bytes for each in held) / 1e6:.1f} MB"
    )
    print(
        f"    descriptors {first.num_descriptors} and {last.num_descriptors}, threads {first.num_threads} and "
        f"{last.num_threads}, processes left {last.num_processes}",
        flush=True,
    )
