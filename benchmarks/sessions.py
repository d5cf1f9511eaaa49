"""Many sessions at once through one server, against one such session, and against a batch in one process.

Trunk [2:10] of GPT-2-small's shape, float32, one torch thread in every process. The clients, on threads in two
processes, send recorded hidden states and compute nothing. After their prompts all step together: steps of all sessions
per second of wall time, first step to last. The batch in one process is sixteen rows with transformers' own cache.

Fairness: the steps per second of the slowest session against the mean. Prompts among steps: eight sessions decode, and
twenty prompts of 2,000 tokens come in, one after the other; the 99th percentile of the eight's steps meanwhile against
the median of their steps without any.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.marks import Mark, at_least, at_most
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import NUM_THREADS, child, one_torch_thread, process
from splitlearn_comm import ClientSession, GRPCComputeClient, GRPCComputeServer
from splitlearn_core import Trunk, split_model
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk

NUM_PROCESSES = 2
NUM_SESSIONS = 16
NUM_STEPS = 24
PROMPTS = (64, 512)
LONG_PROMPT, NUM_LONG, NUM_DECODING = 2000, 20, 8
MAX_POSITIONS = 4096
OF_ONE = {64: at_least(3.5), 512: None}
OF_BATCH = at_least(0.75)
FAIR = at_least(0.8)
STALLED = at_most(3.0)


def make_trunk() -> Trunk:
    """Return the trunk with random weights."""
    torch.manual_seed(0)
    _, trunk, _ = split_model(GPT2LMHeadModel(GPT2Config(n_positions=MAX_POSITIONS)).eval(), (2, 10))
    return trunk


def serve(ready: Connection) -> None:
    """Serve the trunk until the process is ended."""
    torch.set_num_threads(NUM_THREADS)
    server = GRPCComputeServer(HostedTrunk(make_trunk(), name="gpt2-small"), port=0)
    server.start(on_ready=lambda: ready.send(server.address))


def be_clients(parent: Connection, *, address: str) -> None:
    """Do what the parent says with sessions of this process, each on a thread, until the process is ended.

    ("open", sessions, tokens) opens sessions and sends their prompts; ("step", times) steps all and sends for each the
    seconds of every step; ("close",) closes them; ("prompt", tokens) sends one prompt on a session of its own.
    """
    torch.set_num_threads(NUM_THREADS)
    generator = torch.Generator().manual_seed(1)
    token, prompt = torch.randn(1, 1, 768, generator=generator), torch.randn(1, LONG_PROMPT, 768, generator=generator)
    sessions: list[ClientSession] = []

    def begin(num_tokens: int) -> ClientSession:
        session = client.session()
        session.step(prompt[:, :num_tokens])
        return session

    with GRPCComputeClient(address) as client, ThreadPoolExecutor(NUM_SESSIONS) as pool:
        while True:
            match parent.recv():
                case ("open", num_sessions, num_tokens):
                    sessions = list(pool.map(begin, [num_tokens] * num_sessions))
                    parent.send(None)
                case ("step", num_steps):
                    parent.send(list(pool.map(partial(times_of, token, num_steps), sessions)))
                case ("close",):
                    for session in sessions:
                        session.close()
                    parent.send(None)
                case ("prompt", num_tokens):
                    began_s = time.perf_counter()
                    begin(num_tokens).close()
                    parent.send(time.perf_counter() - began_s)


def times_of(token: torch.Tensor, num_steps: int, session: ClientSession) -> list[tuple[float, float]]:
    """Step a session; return when each step began and ended."""
    times = []
    for _ in range(num_steps):
        began_s = time.perf_counter()
        session.step(token)
        times.append((began_s, time.perf_counter()))
    return times


class Clients:
    """The client processes, told what to do together."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def open(self, num_sessions: int, num_tokens: int) -> None:
        """Open so many sessions in all, each with a prompt."""
        self._each([("open", share, num_tokens) for share in shares(num_sessions, len(self._pipes))])

    def step(self, num_steps: int) -> list[list[tuple[float, float]]]:
        """Step all; return for each session when its steps began and ended, on a clock all processes share."""
        return [times for share in self._each([("step", num_steps)] * len(self._pipes)) for times in share]

    def close(self) -> None:
        """Close all sessions."""
        self._each([("close",)] * len(self._pipes))

    def _each(self, messages: list[tuple[object, ...]]) -> list[list[list[tuple[float, float]]]]:
        for pipe, message in zip(self._pipes, messages, strict=True):
            pipe.send(message)
        return [pipe.recv() for pipe in self._pipes]


def shares(total: int, parts: int) -> list[int]:
    """Return how a number is shared out."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def steps_per_s(times: list[list[tuple[float, float]]]) -> float:
    """Return the steps of all sessions per second."""
    began_s = min(session[0][0] for session in times)
    ended_s = max(session[-1][1] for session in times)
    return sum(map(len, times)) / (ended_s - began_s)


@contextmanager
def stepping(clients: Clients, num_sessions: int, prompt_len: int) -> Iterator[Callable[[], float]]:
    """Yield what measures sessions: each time they go on for `NUM_STEPS`; in steps of all of them per second."""
    clients.open(num_sessions, prompt_len)
    try:
        yield lambda: steps_per_s(clients.step(NUM_STEPS))
    finally:
        clients.close()


def batch_stepping(trunk: Trunk, prompt_len: int) -> Callable[[], float]:
    """Return what measures a batch of `NUM_SESSIONS` rows in this process, which goes on each time as sessions do."""
    cache, token = trunk.new_cache(), torch.randn(NUM_SESSIONS, 1, 768)
    with torch.inference_mode():
        trunk(torch.randn(NUM_SESSIONS, prompt_len, 768), past_key_values=cache)

    @torch.inference_mode()
    def measure() -> float:
        began_s = time.perf_counter()
        for _ in range(NUM_STEPS):
            trunk(token, past_key_values=cache)
        return NUM_SESSIONS * NUM_STEPS / (time.perf_counter() - began_s)

    return measure


def compare(name: str, ours: Callable[[], float], other: Callable[[], float], mark: Mark | None, pairs: int) -> None:
    """Print one line."""
    ours_per_s, other_per_s = interleaved(ours, other, pairs)
    ratio = ratio_of(ours_per_s, other_per_s)
    print(
        f"  {name}: {mark.on(ratio) if mark else ratio}; {statistics.median(ours_per_s):.0f} steps a second, "
        f"{statistics.median(other_per_s):.0f} there",
        flush=True,
    )


def fairness(clients: Clients, num_runs: int) -> None:
    """Print how the slowest of the sessions fares against the mean."""
    slowest, means = [], []
    clients.open(NUM_SESSIONS, PROMPTS[0])
    for _ in range(num_runs):
        rates = [steps_per_s([times]) for times in clients.step(NUM_STEPS)]
        slowest.append(min(rates))
        means.append(statistics.mean(rates))
    clients.close()
    print(f"  slowest of {NUM_SESSIONS} against the mean: {FAIR.on(ratio_of(slowest, means))}", flush=True)


def stalls(clients: Clients, prompter: Connection, num_runs: int) -> None:
    """Print what prompts do to sessions that decode."""
    worst, usual = [], []
    for _ in range(num_runs):
        clients.open(NUM_DECODING, PROMPTS[0])
        usual.append(statistics.median(lasted(clients.step(NUM_STEPS))))
        meanwhile: list[float] = []
        for _ in range(NUM_LONG):
            prompter.send(("prompt", LONG_PROMPT))
            while not prompter.poll():
                meanwhile += lasted(clients.step(4))
            prompter.recv()
        clients.close()
        worst.append(statistics.quantiles(meanwhile, n=100)[98])
    ratios = ", ".join(f"{each / its:.2f}" for each, its in zip(worst, usual, strict=True))
    print(f"  99th percentile of steps among prompts, against the median: {ratios}; {STALLED}")
    print(f"    {1000 * statistics.median(worst):.0f} ms against {1000 * statistics.median(usual):.0f}", flush=True)


def lasted(times: list[list[tuple[float, float]]]) -> list[float]:
    """Return how long each step took."""
    return [ended_s - began_s for session in times for began_s, ended_s in session]


def main(num_pairs: int, num_runs: int) -> None:
    """Print the table."""
    one_torch_thread()
    trunk = make_trunk()
    print("steps of sessions through one server")
    with process(serve) as address, ExitStack() as stack:
        pipes = [stack.enter_context(child(partial(be_clients, address=address))) for _ in range(NUM_PROCESSES + 1)]
        clients = Clients(pipes[:NUM_PROCESSES])
        for prompt_len in PROMPTS:
            name = f"{NUM_SESSIONS} sessions of {prompt_len} tokens and more"
            batch = batch_stepping(trunk, prompt_len)
            with (
                stepping(clients, NUM_SESSIONS, prompt_len) as many,
                stepping(Clients(pipes[-1:]), 1, prompt_len) as one,
            ):
                compare(f"{name}, against one", many, one, OF_ONE[prompt_len], num_pairs)
                compare(f"{name}, against a batch in one process", many, batch, OF_BATCH, num_pairs)
        fairness(clients, num_pairs)
        stalls(clients, pipes[-1], num_runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="interleaved pairs (at least 7)")
    parser.add_argument("--runs", type=int, default=1, help="times twenty prompts among steps, a minute or two each")
    arguments = parser.parse_args()
    main(arguments.pairs, arguments.runs)
