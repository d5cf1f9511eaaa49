"""What it costs to watch: tokens per second of the built-in model with everything watched, against nothing.

Watched: a server with metrics for Prometheus, and a client with metrics of its own; in a second row also with the
breakdown of every step (`timings=True`). Request ids, which every call and stream has, are on in all. Both servers are
in one process, on one event loop, and one model in this process does the client's half of all in turn: two processes,
or two models, would differ by where their memory happens to lie, and that would be measured. Short generations (a
prompt of 32 tokens, 25 new ones) in many pairs: what disturbs the machine then hits both of a pair. One torch thread a
process.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection

import torch
from transformers import PreTrainedModel

from benchmarks.generation_speed import PROMPT_TOKENS, generate, seconds
from benchmarks.marks import at_least
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import child
from benchmarks.servers import same_threads_everywhere
from splitlearn import SplitModelForCausalLM
from splitlearn.remote import RemoteTrunk
from splitlearn_comm import GRPCComputeClient
from splitlearn_core import TrunkInfo, TrunkPort, TrunkSession, load_tokenizer
from splitlearn_manager import ManagedServer, ServerConfig
from splitlearn_manager.observability import PrometheusObserver

MODEL = "builtin"
NEW_TOKENS = 25
TEXT = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef variance(values):\n    " * 2
MARK = at_least(0.98)


class Switch(TrunkPort):
    """A port to one of several trunks that are the same; sessions stay where they were opened.

    Args:
        plain: The trunk that nobody watches.
        *watched: The others.
    """

    def __init__(self, plain: TrunkPort, *watched: TrunkPort) -> None:
        self._ports = (plain, *watched)
        self.chosen = 0
        """Which: 0 for the one that nobody watches."""

    @property
    def info(self) -> TrunkInfo:
        """Of the one chosen."""
        return self._chosen.info

    def compute(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """At the one chosen."""
        return self._chosen.compute(hidden_BTH, attention_mask, position_ids, training=training)

    def open_session(self) -> TrunkSession:
        """At the one chosen."""
        return self._chosen.open_session()

    def close(self) -> None:
        """All."""
        for port in self._ports:
            port.close()

    @property
    def _chosen(self) -> TrunkPort:
        return self._ports[self.chosen]


def serve_both(ready: Connection) -> None:
    """Serve the same trunk twice, unwatched and watched, until the process is ended."""
    same_threads_everywhere()
    with (
        ManagedServer(MODEL, port=0) as plain,
        ManagedServer(MODEL, port=0, config=ServerConfig(metrics_port=0)) as watched,
    ):
        ready.send((plain.address, watched.address))
        ready.poll(None)  # until the other end is closed


@contextmanager
def all_ways() -> Iterator[tuple[PreTrainedModel, Switch]]:
    """Yield the built-in model's client side, and what sends it to one server or the other, watched more or less."""
    with child(serve_both) as pipe, ExitStack() as stack:
        plain, watched = pipe.recv()
        switch = stack.enter_context(
            Switch(
                RemoteTrunk(GRPCComputeClient(plain)),
                RemoteTrunk(GRPCComputeClient(watched, observer=PrometheusObserver())),
                RemoteTrunk(GRPCComputeClient(watched, timings=True, observer=PrometheusObserver())),
            )
        )
        yield SplitModelForCausalLM.from_pretrained(MODEL, trunk=switch), switch


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    prompt = load_tokenizer(MODEL)(TEXT, return_tensors="pt").input_ids[:, :PROMPT_TOKENS]
    assert prompt.shape[1] == PROMPT_TOKENS
    with all_ways() as (model, switch):

        def timed(chosen: int) -> float:
            switch.chosen = chosen
            return seconds(model, prompt, NEW_TOKENS)

        expected = generate(model, prompt, NEW_TOKENS)
        print("tokens per second of the built-in model over loopback, watched / not watched")
        for chosen, what in enumerate(("metrics", "metrics, and the breakdown of every step"), start=1):
            switch.chosen = chosen
            assert torch.equal(generate(model, prompt, NEW_TOKENS), expected)
            plain_s, watched_s = interleaved(lambda: timed(0), partial(timed, chosen), num_pairs, warm_ups=5)
            rates = (NEW_TOKENS / statistics.median(times) for times in (watched_s, plain_s))
            told = MARK.on(ratio_of(plain_s, watched_s))
            print(f"  {what}: {told}; {{:.1f}} a second, not watched {{:.1f}}".format(*rates), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=601, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
