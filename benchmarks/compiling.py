"""`torch.compile` on against off, for each part: a prompt, a token, and a training step.

Bottom [0, 2), Trunk [2, 10) and Top [10, 12) with the head, of GPT-2-small's shape with random float32 weights and no
dropout, one torch thread. The compiled part is a copy, and both run in this process, in turn. What compiling takes is
printed too: it happens before the first user comes, but for training steps, which compile when the first one comes.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.pairs import interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere
from splitlearn_core import Bottom, compile_part, split_model
from splitlearn_core.parts.part import Part

SPLIT_POINTS = (2, 10)
PROMPT_TOKENS = 128
ROWS = 4
TOKENS_AT_ONCE = 8
"""Cached steps in one measurement: one alone is too short to be timed."""
Run = Callable[[], object]


def inputs_of(part: Part, num_rows: int, num_tokens: int) -> torch.Tensor:
    """Return ids [B, T] for a Bottom, hidden states [B, T, H] for the others."""
    if isinstance(part, Bottom):
        return torch.randint(1, 50_000, (num_rows, num_tokens), generator=torch.Generator().manual_seed(0))
    return torch.randn(num_rows, num_tokens, part.hidden_size, generator=torch.Generator().manual_seed(0))


def prefill(part: Part) -> Run:
    """Return a run of a prompt with a new cache."""
    inputs = inputs_of(part, 1, PROMPT_TOKENS)

    @torch.no_grad()
    def run() -> object:
        return part(inputs, use_cache=True)

    return run


def decode(part: Part) -> Run:
    """Return a run of some tokens one by one behind a prompt, to which the cache is cut back."""
    cache, token = part.new_cache(), inputs_of(part, 1, 1)
    with torch.no_grad():
        part(inputs_of(part, 1, PROMPT_TOKENS), past_key_values=cache)

    @torch.no_grad()
    def run() -> object:
        for _ in range(TOKENS_AT_ONCE):
            part(token, past_key_values=cache)
        return cache.crop(-TOKENS_AT_ONCE)

    return run


def training_step(part: Part) -> Run:
    """Return a forward with its backward, all weights and the hidden states that come in having gradients."""
    inputs = inputs_of(part, ROWS, PROMPT_TOKENS)
    if inputs.is_floating_point():
        inputs.requires_grad_()

    def run() -> object:
        part.zero_grad(set_to_none=True)
        inputs.grad = None
        part.train()
        part(inputs).square().mean().backward()
        return part.eval()

    return run


CASES = {
    f"prompt of {PROMPT_TOKENS}": prefill,
    f"one token behind {PROMPT_TOKENS}": decode,
    f"training step of {ROWS} x {PROMPT_TOKENS}": training_step,
}


def seconds(run: Run) -> float:
    """Return the wall time of one run."""
    began_s = time.perf_counter()
    run()
    return time.perf_counter() - began_s


def compare(name: str, eager: Part, compiled: Part, num_pairs: int) -> None:
    """Print one line a case."""
    for case, make in CASES.items():
        off, on = make(eager), make(compiled)
        first_s = seconds(on)
        on_s, off_s = interleaved(lambda on=on: seconds(on), lambda off=off: seconds(off), num_pairs, warm_ups=2)
        print(
            f"  {name}, {case}: {ratio_of(on_s, off_s)}; {1000 * statistics.median(on_s):.1f} ms on, "
            f"{1000 * statistics.median(off_s):.1f} off; the first took {first_s:.1f} s",
            flush=True,
        )


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    parts = split_model(GPT2LMHeadModel(GPT2Config(**no_dropout)).eval(), SPLIT_POINTS)
    print("torch.compile, time on / off, GPT-2-small size, float32, one thread")
    for name, part in zip(("Bottom", "Trunk", "Top"), parts, strict=True):
        compiled = copy.deepcopy(part)
        began_s = time.perf_counter()
        if not compile_part(compiled):
            print(f"  {name} does not compile here; the warning says why")
            continue
        print(f"  {name}: compiled and warm in {time.perf_counter() - began_s:.1f} s", flush=True)
        compare(name, part, compiled, num_pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
