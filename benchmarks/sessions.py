"""Many sessions at once through one server, against one such session, and against a batch in one process.

Trunk [2:10] of GPT-2-small's shape, float32, one torch thread in every process. The clients, on threads in two
processes, send recorded hidden states and compute nothing. After their prompts all step together: steps of all sessions
per second of wall time, first step to last. The batch in one process is sixteen rows with transformers' own cache.

Alone: steps per second of one session of a server that joins steps, against one that does not: by its configuration
(`max_rows_per_forward=1`), and one without an engine at all.

Fairness: sixteen clients, each known by a token of its own, with one session each; steps per second of the slowest
against the mean.

Prompts among steps: eight sessions decode, and twenty prompts of 2,000 tokens come in, one after the other; the 99th
percentile of the eight's steps meanwhile against the median of their steps without any.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.marks import Mark, at_least, at_most
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.plain_host import PlainTrunk
from benchmarks.processes import NUM_THREADS, child, one_torch_thread, process
from benchmarks.session_clients import (
    HIDDEN_SIZE,
    LONGEST_PROMPT,
    MAX_SESSIONS,
    Clients,
    be_clients,
    lasted,
    stepping,
    steps_per_s,
)
from splitlearn_comm import GRPCComputeServer, SessionHost
from splitlearn_comm.server import GRPCServerConfig
from splitlearn_core import Trunk, split_model
from splitlearn_core.engine import EngineLimits
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk

NUM_PROCESSES = 2
NUM_SESSIONS = MAX_SESSIONS
NUM_STEPS = 24
PROMPTS = (64, 512)
NUM_DECODING = 8
MAX_POSITIONS = 4096
OF_ONE = {64: at_least(3.5), 512: None}
OF_BATCH = at_least(0.75)
OF_UNJOINED = at_least(0.97)
FAIR = at_least(0.8)
STALLED = at_most(3.0)
TOKENS = {f"client{index}": f"a secret of nobody {index:02}".replace(" ", "-") for index in range(NUM_SESSIONS)}


def make_trunk() -> Trunk:
    """Return the trunk with random weights."""
    torch.manual_seed(0)
    _, trunk, _ = split_model(GPT2LMHeadModel(GPT2Config(n_positions=MAX_POSITIONS)).eval(), (2, 10))
    return trunk


def joining(max_rows: int = EngineLimits().max_rows) -> SessionHost:
    """Return a host whose forwards hold so many rows of several sessions."""
    return HostedTrunk(make_trunk(), name="gpt2-small", engine_limits=EngineLimits(max_rows=max_rows))


def without_engine() -> SessionHost:
    """Return a host that runs step by step."""
    return PlainTrunk(make_trunk())


def serve(
    ready: Connection, *, make: Callable[[], SessionHost] = joining, tokens: dict[str, str] | None = None
) -> None:
    """Serve a host until the process is ended."""
    torch.set_num_threads(NUM_THREADS)
    server = GRPCComputeServer(make(), port=0, config=GRPCServerConfig(tokens=tokens))
    server.start(on_ready=lambda: ready.send(server.address))


def clients_in(stack: ExitStack, num_processes: int, address: str, tokens: Sequence[str] = ()) -> list[Connection]:
    """Start processes of clients, which share out the tokens; return the pipes to them."""
    shared = [tokens[index::num_processes] for index in range(num_processes)]
    return [stack.enter_context(child(partial(be_clients, address=address, tokens=each))) for each in shared]


def batch_stepping(trunk: Trunk, prompt_len: int) -> Callable[[], float]:
    """Return what measures a batch of `NUM_SESSIONS` rows in this process, which goes on each time as sessions do."""
    cache, token = trunk.new_cache(), torch.randn(NUM_SESSIONS, 1, HIDDEN_SIZE)
    with torch.inference_mode():
        trunk(torch.randn(NUM_SESSIONS, prompt_len, HIDDEN_SIZE), past_key_values=cache)

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


def together(address: str, num_pairs: int) -> None:
    """Print how many sessions fare against one, and against a batch."""
    trunk = make_trunk()
    with ExitStack() as stack:
        pipes = clients_in(stack, NUM_PROCESSES + 1, address)
        for prompt_len in PROMPTS:
            name = f"{NUM_SESSIONS} sessions of {prompt_len} tokens and more"
            batch = batch_stepping(trunk, prompt_len)
            with (
                stepping(Clients(pipes[:NUM_PROCESSES]), NUM_SESSIONS, prompt_len, NUM_STEPS) as many,
                stepping(Clients(pipes[-1:]), 1, prompt_len, NUM_STEPS) as one,
            ):
                compare(f"{name}, against one", many, one, OF_ONE[prompt_len], num_pairs)
                compare(f"{name}, against a batch in one process", many, batch, OF_BATCH, num_pairs)


def alone(address: str, num_pairs: int) -> None:
    """Print what joining costs a session that is alone."""
    others: dict[str, Callable[[], SessionHost]] = {
        "max_rows_per_forward=1": partial(joining, 1),
        "a server without an engine": without_engine,
    }
    for name, make in others.items():
        with process(partial(serve, make=make)) as other, ExitStack() as stack:
            ours_pipe, other_pipe = (clients_in(stack, 1, each) for each in (address, other))
            ours = stack.enter_context(stepping(Clients(ours_pipe), 1, PROMPTS[0], NUM_STEPS))
            theirs = stack.enter_context(stepping(Clients(other_pipe), 1, PROMPTS[0], NUM_STEPS))
            compare(f"one session, joining on, against {name}", ours, theirs, OF_UNJOINED, num_pairs)


def fairness(num_runs: int) -> None:
    """Print how the slowest of the clients fares against the mean."""
    slowest, means = [], []
    with process(partial(serve, tokens=TOKENS)) as address, ExitStack() as stack:
        clients = Clients(clients_in(stack, NUM_PROCESSES, address, list(TOKENS.values())))
        clients.open(NUM_SESSIONS, PROMPTS[0])
        for _ in range(num_runs):
            rates = [steps_per_s([times]) for times in clients.step(NUM_STEPS)]
            slowest.append(min(rates))
            means.append(statistics.mean(rates))
        clients.close()
    print(f"  slowest of {NUM_SESSIONS} clients against the mean: {FAIR.on(ratio_of(slowest, means))}", flush=True)


def stalls(address: str, num_runs: int, num_prompts: int) -> None:
    """Print what prompts do to sessions that decode.

    Each step among prompts is held against the median step of the moment before its prompt: twenty prompts take
    minutes, and the machine is not the same all that time.
    """
    worst, times_s = [], []
    with ExitStack() as stack:
        *pipes, prompter = clients_in(stack, NUM_PROCESSES + 1, address)
        clients = Clients(pipes)
        for _ in range(num_runs):
            clients.open(NUM_DECODING, PROMPTS[0])
            clients.step(NUM_STEPS)
            ratios = []
            for _ in range(num_prompts):
                usual_s = statistics.median(lasted(clients.step(NUM_STEPS)))
                times_s.append(usual_s)
                ratios += [step_s / usual_s for step_s in steps_among(clients, prompter)]
            worst.append(statistics.quantiles(ratios, n=100)[98])
            clients.close()
    name = f"99th percentile of steps among {num_prompts} prompts of {LONGEST_PROMPT}, against the median without any"
    print(f"  {name}: {', '.join(f'{ratio:.2f}' for ratio in worst)}, {STALLED}: ", end="")
    print("met" if max(worst) <= STALLED.value else "MISSED")
    print(f"    median step without any {1000 * min(times_s):.0f} to {1000 * max(times_s):.0f} ms", flush=True)


def steps_among(clients: Clients, prompter: Connection) -> list[float]:
    """Return how long the steps took that sessions made while a prompt came in."""
    meanwhile: list[float] = []
    prompter.send(("prompt", LONGEST_PROMPT))
    while not prompter.poll():
        meanwhile += lasted(clients.step(4))
    prompter.recv()
    return meanwhile


def main(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    one_torch_thread()
    print("steps of sessions through one server")
    tables = {
        "together": partial(together, num_pairs=chosen.pairs),
        "alone": partial(alone, num_pairs=chosen.alone_pairs),
        "stalls": partial(stalls, num_runs=chosen.runs, num_prompts=chosen.prompts),
    }
    with process(serve) as address:
        for name, table in tables.items():
            if chosen.only in (None, name):
                table(address)
    if chosen.only in (None, "fairness"):
        fairness(chosen.pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9, help="interleaved pairs (at least 7)")
    parser.add_argument("--alone-pairs", type=int, default=41, help="pairs of the session that is alone")
    parser.add_argument("--runs", type=int, default=1, help="times twenty prompts among steps, minutes each")
    parser.add_argument("--prompts", type=int, default=20, help="prompts of a run")
    parser.add_argument("--only", choices=("together", "alone", "stalls", "fairness"), help="one of the tables")
    main(parser.parse_args())
