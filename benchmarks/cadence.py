"""What a round trip adds at the cadence of generation, against a raw gRPC echo and a raw TCP echo.

3 KB each way, 18 ms of matrix products at the server, 20 ms at the client between messages, nobody sleeps: both sides
are woken for each message, and find their caches full of weights. The time added is the round trip less the time that
the server itself measured for its products, which it sends back: in the first element of the tensor, or in the first
eight bytes of a raw answer. p50 of each batch; one torch thread a process.
"""

import argparse
import statistics
import struct
import time
from collections.abc import Callable
from functools import cache, partial

import torch

from benchmarks.marks import Mark, at_most
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import one_torch_thread, process, serve_function
from benchmarks.raw import echo_trip, serve_echo, serve_tcp, tcp_trip
from benchmarks.trips import Batch, Pace, batches, bytes_of, clients
from splitlearn_comm import ComputeFunction

SHAPE = (1, 1, 768)
NUM_BYTES = 768 * 4
SERVER_S, CLIENT_S = 0.018, 0.020
MARK = at_most(1.15)
SECONDS = struct.Struct("d")


@cache
def weights() -> list[torch.Tensor]:
    """Return 75 MB of matrices, as many as fit into no cache of the machine."""
    return [torch.randn(768, 3072) for _ in range(8)]


def multiply_for(seconds: float) -> float:
    """Do matrix products for so long, and until the last one ends; return how long that was."""
    row, products = torch.ones(1, 768), 0
    started = time.perf_counter()
    while (elapsed_s := time.perf_counter() - started) < seconds:
        torch.mm(row, weights()[products % 8])
        products += 1
    return elapsed_s


def raw_answer(data: bytes) -> bytes:
    """Compute, and answer with the time of it."""
    return SECONDS.pack(multiply_for(SERVER_S)) + data[SECONDS.size :]


class Products(ComputeFunction):
    """Computes, and answers with the time of it.

    Args:
        inline: Whether on the event loop, as the raw echo does.
    """

    def __init__(self, *, inline: bool) -> None:
        self.inline = inline

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, its first element replaced by the seconds."""
        tensor.view(-1)[0] = multiply_for(SERVER_S)
        return tensor


def server_s(answer: torch.Tensor | bytes) -> float:
    """Return how long the server computed."""
    if isinstance(answer, torch.Tensor):
        return answer.view(-1)[0].item()
    seconds: float = SECONDS.unpack_from(answer)[0]
    return seconds


PACE = Pace(before=partial(multiply_for, CLIENT_S), server_s=server_s)


def added_s(batch: Batch, num_trips: int) -> Callable[[], float]:
    """Return what measures a batch: the p50 of the time added to a round trip, in seconds."""
    return lambda: statistics.median(batch(num_trips))


def compare(name: str, ours: Batch, raw: Batch, mark: Mark | None, num_pairs: int, num_trips: int) -> None:
    """Print one line."""
    ours_s, raw_s = interleaved(added_s(ours, num_trips), added_s(raw, num_trips), num_pairs)
    ratio = ratio_of(ours_s, raw_s)
    print(
        f"  {name}: {mark.on(ratio) if mark else ratio}; "
        f"{1000 * statistics.median(ours_s):.3f} ms, raw gRPC {1000 * statistics.median(raw_s):.3f}",
        flush=True,
    )


def main(num_pairs: int, num_trips: int) -> None:
    """Print the table."""
    one_torch_thread()
    tensor = torch.ones(SHAPE)
    print("time added per round trip of 3 KB / the same of a raw gRPC echo stream; 18 ms at the server, 20 between")
    with process(partial(serve_echo, answer=raw_answer)) as raw:
        tcp_server = partial(serve_tcp, num_bytes=NUM_BYTES, answer=raw_answer)
        with (
            process(tcp_server) as tcp,
            tcp_trip(tcp, bytes_of(tensor)) as over_tcp,
            echo_trip(raw, bytes_of(tensor)) as over_grpc,
        ):
            compare("raw TCP", batches(over_tcp, PACE), batches(over_grpc, PACE), None, num_pairs, num_trips)
        with (
            process(partial(serve_function, function=Products(inline=True))) as inline,
            process(partial(serve_function, function=Products(inline=False))) as on_worker,
            clients(PACE) as kinds,
        ):
            for kind, connect in kinds.items():
                for name, address in (("inline", inline), ("worker thread", on_worker)):
                    with connect(address, raw, tensor) as (ours, echo):
                        compare(f"{kind}, {name}", ours, echo, MARK, num_pairs, num_trips)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (at least 7)")
    parser.add_argument("--trips", type=int, default=10, help="round trips of a batch, 40 ms each")
    arguments = parser.parse_args()
    main(arguments.pairs, arguments.trips)
