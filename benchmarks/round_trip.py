"""A round trip of an identity on a session stream against a raw gRPC echo of as many bytes, from 3 KB to 16 MB.

Synchronous client against synchronous client, asyncio against asyncio; all servers are grpc.aio servers, each in a
process of its own. The identity runs inline, and again on the worker thread that other functions have: what the
hand-off costs. Back to back, one torch thread a process, p50 of each batch.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.marks import Mark, at_most
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import one_torch_thread, process, serve_function
from benchmarks.raw import serve_echo
from benchmarks.trips import Batch, Opener, clients
from splitlearn_comm.testing import Identity


@dataclass(frozen=True, kw_only=True)
class Size:
    """A tensor to send."""

    name: str
    shape: tuple[int, ...]
    num_trips: int
    """Round trips of a batch: a few hundredths to some tenths of a second."""
    mark: Mark


SIZES = (
    Size(name="3 KB", shape=(1, 1, 768), num_trips=300, mark=at_most(1.35)),
    Size(name="30 KB", shape=(1, 10, 768), num_trips=300, mark=at_most(1.35)),
    Size(name="1 MB", shape=(1, 256, 1024), num_trips=60, mark=at_most(1.2)),
    Size(name="16 MB", shape=(1, 4096, 1024), num_trips=8, mark=at_most(1.2)),
)


class OnWorkerThread(Identity):
    """The identity, on the thread that functions have unless they are cheap."""

    inline = False


def p50_of(batch: Batch, num_trips: int) -> Callable[[], float]:
    """Return what measures a batch: the p50 of its round trips in seconds."""
    return lambda: statistics.median(batch(num_trips))


def compare(name: str, connect: Opener, ours: str, raw: str, size: Size, mark: Mark | None, num_pairs: int) -> None:
    """Print one line."""
    tensor = torch.randn(size.shape, generator=torch.Generator().manual_seed(0))
    with connect(ours, raw, tensor) as (our, echo):
        ours_s, raw_s = interleaved(p50_of(our, size.num_trips), p50_of(echo, size.num_trips), num_pairs)
    ratio = ratio_of(ours_s, raw_s)
    print(
        f"  {size.name:5} {name}: {mark.on(ratio) if mark else ratio}; "
        f"{1000 * statistics.median(ours_s):.3f} ms, raw {1000 * statistics.median(raw_s):.3f}",
        flush=True,
    )


def main(num_pairs: int) -> None:
    """Print the table."""
    one_torch_thread()
    print("session round trip / raw gRPC echo stream, identity of float32, p50")
    with (
        process(partial(serve_function, function=Identity())) as inline,
        process(partial(serve_function, function=OnWorkerThread())) as on_worker,
        process(serve_echo) as raw,
        clients() as kinds,
    ):
        for kind, connect in kinds.items():
            for size in SIZES:
                compare(f"{kind}, inline", connect, inline, raw, size, size.mark, num_pairs)
                compare(f"{kind}, worker thread", connect, on_worker, raw, size, None, num_pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
