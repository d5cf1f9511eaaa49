"""Steps per second of 3 KB, back to back: one client, and eight at once, against clients of a raw gRPC echo stream.

The identity runs inline; both servers are grpc.aio servers, each in a process of its own. The eight are synchronous
clients in two processes of four threads, each with a connection and a session of its own; what they do in half a
second counts together.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection

import torch

from benchmarks.marks import Mark, at_least
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import child, one_torch_thread, process, serve_function
from benchmarks.raw import echo_trip, serve_echo
from benchmarks.trips import Batch, bytes_of, clients, our_trip
from splitlearn_comm.testing import Identity

SHAPE = (1, 1, 768)
BATCH_STEPS = 500
BATCH_S = 0.5
NUM_PROCESSES, NUM_THREADS = 2, 4
MARK = at_least(0.8)


def rate(batch: Batch) -> float:
    """Return the steps per second of one client."""
    return BATCH_STEPS / sum(batch(BATCH_STEPS))


def run_clients(parent: Connection, *, ours: str, raw: str) -> None:
    """Be clients, each on a thread, until the process is ended.

    For each "ours" or "raw" that comes, step for `BATCH_S` and send how many steps that were.
    """
    torch.set_num_threads(1)
    tensor = torch.ones(SHAPE)
    with ExitStack() as stack, ThreadPoolExecutor(NUM_THREADS) as pool:
        trips: dict[str, list[Callable[[], object]]] = {
            "ours": [stack.enter_context(our_trip(ours, tensor)) for _ in range(NUM_THREADS)],
            "raw": [stack.enter_context(echo_trip(raw, bytes_of(tensor))) for _ in range(NUM_THREADS)],
        }
        while True:
            which = parent.recv()
            until_s = time.perf_counter() + BATCH_S
            parent.send(sum(pool.map(partial(count_until, until_s), trips[which])))


def count_until(until_s: float, trip: Callable[[], object]) -> int:
    """Return how many trips begin before a time of `time.perf_counter`."""
    count = 0
    while time.perf_counter() < until_s:
        trip()
        count += 1
    return count


def rate_together(pipes: list[Connection], which: str) -> float:
    """Return the steps per second of the clients in all processes."""
    for pipe in pipes:
        pipe.send(which)
    num_steps: int = sum(pipe.recv() for pipe in pipes)
    return num_steps / BATCH_S


def compare(name: str, ours: Callable[[], float], raw: Callable[[], float], mark: Mark, num_pairs: int) -> None:
    """Print one line."""
    ours_per_s, raw_per_s = interleaved(ours, raw, num_pairs)
    print(
        f"  {name}: {mark.on(ratio_of(ours_per_s, raw_per_s))}; "
        f"{statistics.median(ours_per_s):.0f} a second, raw {statistics.median(raw_per_s):.0f}",
        flush=True,
    )


def main(num_pairs: int) -> None:
    """Print the table."""
    one_torch_thread()
    print("steps per second of 3 KB / those of a raw gRPC echo stream")
    with (
        process(partial(serve_function, function=Identity())) as ours,
        process(serve_echo) as raw,
    ):
        with clients() as kinds:
            for kind, connect in kinds.items():
                with connect(ours, raw, torch.ones(SHAPE)) as (our, echo):
                    compare(f"one client, {kind}", partial(rate, our), partial(rate, echo), MARK, num_pairs)
        with ExitStack() as stack:
            target = partial(run_clients, ours=ours, raw=raw)
            pipes = [stack.enter_context(child(target)) for _ in range(NUM_PROCESSES)]
            together = partial(rate_together, pipes)
            name = f"{NUM_PROCESSES * NUM_THREADS} clients at once"
            compare(name, partial(together, "ours"), partial(together, "raw"), MARK, num_pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
