"""What it costs to watch: tokens per second of the built-in model with the breakdown of every step, against without.

Watched: the server measures where the time of each step went and sends it back, and the client keeps it
(`timings=True`). Request ids, which every call has at the server, are on in both. One server in a process of its own,
two clients in this one, in turn; a prompt of 32 tokens and 50 new ones, one torch thread a process.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.generation_speed import NEW_TOKENS, PROMPT_TOKENS, generate, seconds
from benchmarks.marks import at_least
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere, trunk_server
from splitlearn import SplitModelForCausalLM
from splitlearn.remote import RemoteTrunk
from splitlearn_comm import GRPCComputeClient
from splitlearn_core import load_tokenizer

MODEL = "builtin"
TEXT = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef variance(values):\n    " * 2
MARK = at_least(0.98)


@contextmanager
def client_model(address: str, *, is_watched: bool) -> Iterator[PreTrainedModel]:
    """Yield the built-in model's client side, joined to a trunk on a server."""
    port = RemoteTrunk(GRPCComputeClient(address, timings=is_watched))
    try:
        yield SplitModelForCausalLM.from_pretrained(MODEL, trunk=port)
    finally:
        port.close()


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    prompt = load_tokenizer(MODEL)(TEXT, return_tensors="pt").input_ids[:, :PROMPT_TOKENS]
    assert prompt.shape[1] == PROMPT_TOKENS
    with trunk_server(MODEL) as address, ExitStack() as stack:
        plain = stack.enter_context(client_model(address, is_watched=False))
        watched = stack.enter_context(client_model(address, is_watched=True))
        assert torch.equal(generate(plain, prompt, NEW_TOKENS), generate(watched, prompt, NEW_TOKENS))
        plain_s, watched_s = interleaved(
            partial(seconds, plain, prompt, NEW_TOKENS), partial(seconds, watched, prompt, NEW_TOKENS), num_pairs
        )
    rates = (NEW_TOKENS / statistics.median(times) for times in (watched_s, plain_s))
    print("tokens per second of the built-in model over loopback, watched / not watched")
    print(f"  {MARK.on(ratio_of(plain_s, watched_s))}; {{:.1f}} a second, not watched {{:.1f}}".format(*rates))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=61, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
