"""Attention in one kernel (SDPA) against the plain one (eager): time and memory of a training step.

The built-in model's architecture, larger: 8 layers of width 512, random float32 weights, one sequence of 1,024 tokens,
forward and backward, one torch thread. Both models have the same weights and run in this process, in turn. Memory is
the peak growth of a process of its own over one step (RssAnon + RssFile, sampled every 2 ms; Linux only), behind a
short step that has set up what is set up once.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import threading
import time
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.load_memory import resident_bytes
from benchmarks.marks import at_least, at_most
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere
from splitlearn_core.builtin import builtin_directory

NUM_TOKENS = 1024
SHORT = 16
SIZE = {"n_layer": 8, "n_embd": 512, "n_head": 8, "n_positions": NUM_TOKENS}
KINDS = ("sdpa", "eager")
FASTER, LEANER = at_least(1.3), at_most(0.8)
CHILD = "from benchmarks.attention import print_peak; print_peak({kind!r})"


def make_model(kind: str) -> GPT2LMHeadModel:
    """Return the larger built-in model with a kind of attention; the same weights for every kind."""
    config = GPT2Config.from_pretrained(builtin_directory(), **SIZE)
    config._attn_implementation = kind
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).train()


def step(model: GPT2LMHeadModel, ids: torch.Tensor) -> float:
    """Run forward and backward; return the loss."""
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss is not None
    loss.backward()
    return loss.item()


def seconds(model: GPT2LMHeadModel, ids: torch.Tensor) -> float:
    """Return the wall time of one step."""
    began_s = time.perf_counter()
    step(model, ids)
    return time.perf_counter() - began_s


def tokens(num_tokens: int) -> torch.Tensor:
    """Return token ids [1, T]."""
    return torch.randint(1, 4000, (1, num_tokens), generator=torch.Generator().manual_seed(0))


def print_peak(kind: str) -> None:
    """Print by how many bytes this process grows at most in one step: what a process of its own runs."""
    same_threads_everywhere()
    model = make_model(kind)
    step(model, tokens(SHORT))
    model.zero_grad(set_to_none=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    before = resident_bytes()
    watcher.start()
    step(model, tokens(NUM_TOKENS))
    done.set()
    watcher.join()
    print(max(peak, resident_bytes()) - before)


def peak_bytes(kind: str) -> float:
    """Run one step in a new process; return by how many bytes that grew at most."""
    command = [sys.executable, "-c", CHILD.format(kind=kind)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    sdpa, eager = (make_model(kind) for kind in KINDS)
    ids = tokens(NUM_TOKENS)
    losses = [step(copy.deepcopy(model), ids) for model in (sdpa, eager)]
    assert abs(losses[0] - losses[1]) < 1e-4, losses
    print(f"a training step of {NUM_TOKENS} tokens, {SIZE['n_layer']} layers of width {SIZE['n_embd']}, float32")
    sdpa_s, eager_s = interleaved(partial(seconds, sdpa, ids), partial(seconds, eager, ids), num_pairs)
    print(
        f"  time, eager / sdpa: {FASTER.on(ratio_of(eager_s, sdpa_s))}; "
        f"{1000 * statistics.median(eager_s):.0f} ms eager, {1000 * statistics.median(sdpa_s):.0f} sdpa",
        flush=True,
    )
    sdpa_bytes, eager_bytes = interleaved(
        partial(peak_bytes, "sdpa"), partial(peak_bytes, "eager"), num_pairs, warm_ups=0
    )
    print(
        f"  peak memory, sdpa / eager: {LEANER.on(ratio_of(sdpa_bytes, eager_bytes))}; "
        f"{statistics.median(sdpa_bytes) / 1e6:.0f} MB sdpa, {statistics.median(eager_bytes) / 1e6:.0f} eager"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
