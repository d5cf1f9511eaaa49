"""Trunk servers in processes of their own, and what runs in every process of a benchmark."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.processes import one_torch_thread
from splitlearn.cli.child_server import child_server
from splitlearn.cli.quiet import set_up_logging
from splitlearn_manager import ModelServer, ModelSpec


def same_threads_everywhere() -> None:
    """Give this process, and those it starts, the same number of torch threads, and keep them quiet."""
    one_torch_thread()
    set_up_logging("warning")


@contextmanager
def trunk_server(model: str | Path, *arguments: str) -> Iterator[str]:
    """Serve a trunk from another process; yields its address."""
    with child_server(str(model), *arguments) as (address, _):
        yield address


def serve_models(ready: Connection, *, specs: Sequence[ModelSpec]) -> None:
    """Serve models, each in a process of its own, until the process is ended; sends the address, and its own id."""
    same_threads_everywhere()
    server = ModelServer(specs, port=0)

    def tell() -> None:
        ready.send(server.address)
        ready.send(os.getpid())

    server.start(on_ready=tell)
