"""Sixteen real clients that generate at once, in four processes, against one of them alone.

GPT-2-small size, random float32 weights, cut at [2, 10), one torch thread in every process. Each client is known by a
token of its own and has its own Bottom and Top; it generates greedily behind a prompt of its own. Tokens per second of
all clients, from the first that begins until the last has ended, against those of one client while the others rest.
Every client's tokens must be those that it generates alone.

Where a token's time goes is what the clients' sessions say of their steps (`timings=True`): at the server, and of that
waiting for others' steps; the wire, gRPC and coding; and the rest, the client's own layers.
"""

import argparse
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.marks import at_least
from benchmarks.models import gpt2_small
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import child, process
from benchmarks.servers import same_threads_everywhere
from splitlearn import SplitModelForCausalLM
from splitlearn_comm import ObservedCall, Observer
from splitlearn_comm.observer import Metadata, StepSummary
from splitlearn_core import SplitModel
from splitlearn_manager import ManagedServer, ServerConfig

NUM_CLIENTS, NUM_PROCESSES = 16, 4
PROMPT_TOKENS, NEW_TOKENS = 32, 32
POINTS = (2, 10)
MARK = at_least(1.5)
SECRETS = {f"client{index}": f"nobody-needs-this-{index:02}" for index in range(NUM_CLIENTS)}


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One client's generation."""

    client: int
    began_s: float
    """On a clock that all processes share."""
    ended_s: float
    tokens: tuple[int, ...] = ()
    steps_s: float = 0.0
    """Of these in steps, seen from the client."""
    queue_s: float = 0.0
    """Of those at the server, waiting for others."""
    host_s: float = 0.0
    """Of those in the server's host."""
    error: str = ""
    """Why it failed."""


class StepTimes(Observer, ObservedCall):
    """Adds up what a client's steps took."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin at nothing."""
        self.steps_s = self.queue_s = self.host_s = 0.0

    def on_call(self, method: str, metadata: Metadata) -> ObservedCall:
        """Watch them all."""
        return self

    def on_step(self, step: StepSummary) -> None:
        """Add one."""
        self.steps_s += step.seconds
        self.queue_s += step.queue_s
        self.host_s += step.compute_s


class RealClient:
    """A client with its own Bottom, Top and connection.

    Args:
        index: which of all.
        directory: of the checkpoint.
        address: of the server.
    """

    def __init__(self, index: int, directory: Path, address: str) -> None:
        self._index, self._times = index, StepTimes()
        connection = {"token": SECRETS[f"client{index}"], "timings": True, "observer": self._times}
        self._model: SplitModel = SplitModelForCausalLM.from_pretrained(
            str(directory), trunk=address, connection=connection
        )
        generator = torch.Generator().manual_seed(index)
        self._prompt = torch.randint(1, 50_000, (1, PROMPT_TOKENS), generator=generator)

    def generate(self, num_tokens: int) -> Generated:
        """Generate so many tokens."""
        generate: Any = self._model.generate
        self._times.begin()
        began_s = time.perf_counter()
        try:
            ids = generate(
                self._prompt, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0
            )
        except Exception as error:  # counted, and told of with the table
            said = f"{type(error).__name__}: {error}"
            return Generated(client=self._index, began_s=began_s, ended_s=time.perf_counter(), error=said)
        return Generated(
            client=self._index,
            began_s=began_s,
            ended_s=time.perf_counter(),
            tokens=tuple(ids[0, PROMPT_TOKENS:].tolist()),
            steps_s=self._times.steps_s,
            queue_s=self._times.queue_s,
            host_s=self._times.host_s,
        )


def serve(ready: Connection, *, directory: Path) -> None:
    """Serve the trunk until the process is ended; sends the address."""
    same_threads_everywhere()
    server = ManagedServer(str(directory), port=0, split_points=POINTS, config=ServerConfig(tokens=SECRETS))
    server.start(on_ready=lambda: ready.send(server.address))


def be_clients(parent: Connection, *, indices: tuple[int, ...], directory: Path, address: str) -> None:
    """Be some of the clients, each on a thread, until the process is ended.

    A tuple of clients' numbers and a number of tokens is answered by what those generated.
    """
    same_threads_everywhere()
    clients = {index: RealClient(index, directory, address) for index in indices}
    parent.send(None)
    with ThreadPoolExecutor(len(clients)) as pool:
        while True:
            chosen, num_tokens = parent.recv()
            parent.send(list(pool.map(lambda index: clients[index].generate(num_tokens), chosen)))  # noqa: B023


class Clients:
    """All of them, told what to do together."""

    def __init__(self, pipes: list[Connection], num_tokens: int) -> None:
        self._pipes = pipes
        self._num_tokens = num_tokens
        self.done: list[Generated] = []
        """All generations up to now."""

    def generate(self, clients: Iterable[int]) -> list[Generated]:
        """Let some generate at once."""
        shares = [tuple(c for c in clients if c % NUM_PROCESSES == index) for index in range(NUM_PROCESSES)]
        busy = [(pipe, share) for pipe, share in zip(self._pipes, shares, strict=True) if share]
        for pipe, share in busy:
            pipe.send((share, self._num_tokens))
        generated = [each for pipe, _ in busy for each in pipe.recv()]
        self.done += generated
        return generated

    def tokens_per_s(self, clients: Iterable[int]) -> float:
        """Let some generate at once; return the tokens of all per second."""
        generated = self.generate(clients)
        num_tokens = sum(len(each.tokens) for each in generated)
        return num_tokens / (max(each.ended_s for each in generated) - min(each.began_s for each in generated))


def where_time_goes(generated: list[Generated]) -> str:
    """Return how a token's time is shared out, from generations that did not fail."""
    good = [each for each in generated if not each.error]
    num_tokens = sum(len(each.tokens) for each in good)
    whole_s = sum(each.ended_s - each.began_s for each in good)
    steps_s, queue_s, host_s = (sum(getattr(each, name) for each in good) for name in ("steps_s", "queue_s", "host_s"))
    parts = {
        "at the server": queue_s + host_s,
        "of that waiting for others": queue_s,
        "wire, gRPC, coding": steps_s - queue_s - host_s,
        "the client's own": whole_s - steps_s,
    }
    told = ", ".join(f"{name} {part / whole_s:.0%}" for name, part in parts.items())
    return f"{1000 * whole_s / num_tokens:.1f} ms: {told}"


def main(num_pairs: int, num_tokens: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    everybody = range(NUM_CLIENTS)
    with gpt2_small() as directory, process(partial(serve, directory=directory)) as address, ExitStack() as stack:
        pipes = []
        for index in range(NUM_PROCESSES):
            target = partial(be_clients, indices=tuple(everybody[index::NUM_PROCESSES]))
            pipes.append(stack.enter_context(child(partial(target, directory=directory, address=address))))
        for pipe in pipes:
            pipe.recv()
        clients = Clients(pipes, num_tokens)
        expected = {client: clients.generate([client])[0].tokens for client in everybody}
        many, one = interleaved(partial(clients.tokens_per_s, everybody), partial(clients.tokens_per_s, [0]), num_pairs)
    print_table(many, one, clients.done[NUM_CLIENTS:], expected)


def print_table(
    many: list[float], one: list[float], done: list[Generated], expected: dict[int, tuple[int, ...]]
) -> None:
    """Print what came of it."""
    print(f"{NUM_CLIENTS} real clients at once, in {NUM_PROCESSES} processes, against one")
    print(
        f"  tokens per second: {MARK.on(ratio_of(many, one))}; {statistics.median(many):.0f} of all, "
        f"{statistics.median(one):.0f} of one"
    )
    errors = [each.error for each in done if each.error]
    num_wrong = sum(each.tokens != expected[each.client] for each in done if not each.error)
    verdict = "MISSED" if errors or num_wrong else "met"
    print(f"  errors {len(errors)}, other tokens than alone {num_wrong} of {len(done)} generations: {verdict}")
    for error in sorted(set(errors)):
        print(f"    {error}")
    # Runs of one client are those that nobody else's overlaps.
    alone = [each for each in done if is_alone(each, done)]
    print(f"  a token of one client alone, {where_time_goes(alone)}")
    print(f"  a token of one of {NUM_CLIENTS}, {where_time_goes([each for each in done if each not in alone])}")


def is_alone(generated: Generated, others: list[Generated]) -> bool:
    """Whether no other generation ran at the same time."""
    return all(
        other is generated or other.ended_s < generated.began_s or other.began_s > generated.ended_s for other in others
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="interleaved pairs (at least 7)")
    parser.add_argument("--tokens", type=int, default=NEW_TOKENS, help="new tokens of a generation")
    arguments = parser.parse_args()
    main(arguments.pairs, arguments.tokens)
