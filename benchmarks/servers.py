"""Trunk servers in processes of their own, and what runs in every process of a benchmark."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from splitlearn.cli.child_server import child_server
from splitlearn.cli.quiet import set_up_logging

NUM_THREADS = 1


def same_threads_everywhere() -> None:
    """Give this process, and those it starts, the same number of torch threads, and keep them quiet."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(NUM_THREADS)
    torch.set_num_threads(NUM_THREADS)
    set_up_logging("warning")


@contextmanager
def trunk_server(model: Path, *arguments: str) -> Iterator[str]:
    """Serve a trunk from another process; yields its address."""
    with child_server(str(model), *arguments) as (address, _):
        yield address
