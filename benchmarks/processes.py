"""What runs in processes of its own, and the one torch thread that all of them have.

Nothing here needs transformers: a process starts by importing what the table imports.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from splitlearn_comm import ComputeFunction, GRPCComputeServer

NUM_THREADS = 1


def one_torch_thread() -> None:
    """Give this process, and those it starts, one torch thread."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(NUM_THREADS)
    torch.set_num_threads(NUM_THREADS)


@contextmanager
def child(target: Callable[[Connection], None]) -> Iterator[Connection]:
    """Run a function in a process of its own until the block ends; yields this end of the pipe between them."""
    context = multiprocessing.get_context("spawn")  # never fork once gRPC has started
    ours, theirs = context.Pipe()
    running = context.Process(target=target, args=(theirs,), daemon=True)
    running.start()
    theirs.close()  # or a child that ended would be waited for without end
    try:
        yield ours
    finally:
        running.terminate()
        running.join()
        ours.close()


@contextmanager
def process(target: Callable[[Connection], None]) -> Iterator[str]:
    """Run a server, which sends its address when it listens, in a process of its own; yields the address."""
    with child(target) as pipe:
        yield pipe.recv()


def serve_function(ready: Connection, *, function: ComputeFunction) -> None:
    """Serve a function of ours until the process is ended."""
    torch.set_num_threads(NUM_THREADS)
    server = GRPCComputeServer(function, port=0)
    server.start(on_ready=lambda: ready.send(server.address))
