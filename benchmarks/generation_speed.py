"""Tokens per second over loopback against the unsplit model's own `generate`.

GPT-2-small size, random float32 weights, a prompt of 32 tokens and 50 new ones, one torch thread in every process,
nothing pinned. The unsplit model and the client run in this process, in turn; the server runs in another.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.models import gpt2_small
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere, trunk_server
from splitlearn import SplitModelForCausalLM

PROMPT_TOKENS = 32
NEW_TOKENS = 50
POINTS = "2,10"


def seconds(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int) -> float:
    """Return the wall time of one generation."""
    started = time.perf_counter()
    output = model.generate(prompt, max_new_tokens=new_tokens, do_sample=False)
    assert output.shape[1] == PROMPT_TOKENS + new_tokens
    return time.perf_counter() - started


def compare(whole: PreTrainedModel, split: PreTrainedModel, num_pairs: int) -> None:
    """Print the ratios of one way of reaching the trunk."""
    prompt = torch.randint(1, 50_000, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    assert torch.equal(whole.generate(prompt, **options), split.generate(prompt, **options))
    for name, new_tokens in ((f"tokens/s, {NEW_TOKENS} new tokens", NEW_TOKENS), ("1 / time to first token", 1)):
        unsplit_s, split_s = interleaved(
            lambda n=new_tokens: seconds(whole, prompt, n),  # type: ignore[misc]
            lambda n=new_tokens: seconds(split, prompt, n),  # type: ignore[misc]
            num_pairs,
        )
        per_token_ms = [1000 * statistics.median(times) / new_tokens for times in (unsplit_s, split_s)]
        print(
            f"    {name}: {ratio_of(unsplit_s, split_s)}; {per_token_ms[0]:.1f} ms unsplit, {per_token_ms[1]:.1f} split"
        )


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    with gpt2_small() as directory:
        whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        print("split / unsplit, GPT-2-small size, float32, one thread a process")
        print("  trunk in this process (the reference)")
        compare(whole, SplitModelForCausalLM.from_pretrained(str(directory), split_points=(2, 10)), num_pairs)
        with trunk_server(Path(directory), "--split-points", POINTS) as address:
            print("  trunk in another process, over loopback (mark: at least 0.92, goal 0.97)")
            compare(whole, SplitModelForCausalLM.from_pretrained(str(directory), trunk=address), num_pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
