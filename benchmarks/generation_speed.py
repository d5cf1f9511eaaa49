"""Tokens per second over loopback against the unsplit model's own `generate`.

GPT-2-small size, random float32 weights, a prompt of 32 tokens and 50 new ones, one torch thread in every process,
nothing pinned. The unsplit model and the client run in this process, in turn; the server runs in another.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.marks import Mark, at_least
from benchmarks.models import gpt2_small
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere, trunk_server
from splitlearn import SplitModelForCausalLM

PROMPT_TOKENS = 32
NEW_TOKENS = 50
POINTS = "2,10"
MARKS = (at_least(0.92), at_least(0.94), at_least(0.97))
"""Of the tokens over loopback: the first mark, today's mark, the goal."""


def generate(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Generate so many tokens greedily, whatever they are; returns prompt and tokens."""
    # Stubs of PreTrainedModel take any attribute for a tensor or a module.
    generate_of: Any = model.generate
    output: torch.Tensor = generate_of(
        prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    return output


def seconds(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> float:
    """Return the wall time of one generation."""
    started = time.perf_counter()
    output = generate(model, prompt, new_tokens)
    elapsed_s = time.perf_counter() - started
    assert output.shape[1] == prompt.shape[1] + new_tokens
    return elapsed_s


def compare(whole: PreTrainedModel, split: PreTrainedModel, num_pairs: int, marks: tuple[Mark, ...] = ()) -> None:
    """Print the ratios of one way of reaching the trunk; the marks are of the tokens per second."""
    prompt = torch.randint(1, 50_000, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(generate(whole, prompt, NEW_TOKENS), generate(split, prompt, NEW_TOKENS))
    cases = ((f"tokens/s, {NEW_TOKENS} new tokens", NEW_TOKENS, marks), ("1 / time to first token", 1, ()))
    for name, new_tokens, judged_by in cases:
        unsplit_s, split_s = interleaved(
            partial(seconds, whole, prompt, new_tokens), partial(seconds, split, prompt, new_tokens), num_pairs
        )
        ratio = ratio_of(unsplit_s, split_s)
        unsplit_ms, split_ms = (1000 * statistics.median(times) / new_tokens for times in (unsplit_s, split_s))
        print(f"    {name}: {ratio}; {unsplit_ms:.1f} ms unsplit, {split_ms:.1f} split", flush=True)
        for mark in judged_by:
            print(f"      {mark}: {mark.verdict(ratio)}")


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    with gpt2_small() as directory:
        whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        print("split / unsplit, GPT-2-small size, float32, one thread a process")
        print("  trunk in this process (the reference)")
        compare(whole, SplitModelForCausalLM.from_pretrained(str(directory), split_points=(2, 10)), num_pairs)
        with trunk_server(directory, "--split-points", POINTS) as address:
            print("  trunk in another process, over loopback")
            compare(whole, SplitModelForCausalLM.from_pretrained(str(directory), trunk=address), num_pairs, MARKS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
