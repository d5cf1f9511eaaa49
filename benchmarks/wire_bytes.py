"""Bytes on the wire for 100 generated tokens, both directions, counted at the socket.

GPT-2-small size; the baseline is the hidden states themselves, the prompt's included: a token's are 768 numbers each
way. Opening the connection, asking what is served, and the session's messages all count.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.counting_proxy import CountingProxy
from benchmarks.models import gpt2_small
from benchmarks.servers import same_threads_everywhere, trunk_server
from splitlearn import SplitModelForCausalLM

PROMPT_TOKENS = 32
NEW_TOKENS = 100
WIDTH = 768


def measure(directory: Path, dtype: torch.dtype) -> None:
    """Print the line of one dtype."""
    name = str(dtype).removeprefix("torch.")
    prompt = torch.randint(1, 50_000, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    with (
        trunk_server(directory, "--split-points", "2,10", "--dtype", name) as address,
        CountingProxy(address) as proxy,
    ):
        split = SplitModelForCausalLM.from_pretrained(str(directory), trunk=proxy.address, dtype=dtype)
        output = split.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
        split.trunk.close()
        traffic = proxy.traffic
    # The last token is never sent: nothing follows it.
    positions = output.shape[1] - 1
    hidden_bytes = positions * WIDTH * dtype.itemsize * 2
    total = traffic.sent + traffic.received
    print(
        f"  {name}: {total:,} bytes ({traffic.sent:,} up, {traffic.received:,} down) for {positions} positions; "
        f"{total / hidden_bytes:.3f} of the hidden states (mark: at most 1.10)"
    )


def main() -> None:
    """Print the table."""
    same_threads_everywhere()
    print(f"bytes on the wire, prompt of {PROMPT_TOKENS} tokens and {NEW_TOKENS} new ones")
    with gpt2_small() as directory:
        for dtype in (torch.float32, torch.bfloat16):
            measure(directory, dtype)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
