"""A round trip of a (1, 10, 768) float32 identity on a session stream against a raw gRPC echo of as many bytes.

Synchronous client against synchronous client, asyncio against asyncio; both servers are grpc.aio servers, each in a
process of its own; the identity runs inline. Back to back, one torch thread a process, p50 of each batch.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc
import torch

from benchmarks.pairs import Ratio, interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere
from splitlearn_comm import AsyncComputeClient, GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.testing import Identity

SHAPE = (1, 10, 768)
RAW_METHOD = "/raw.Echo/Stream"
TRIPS = 300


def serve_ours(ready: Connection) -> None:
    """Serve the identity until the process is ended."""
    torch.set_num_threads(1)
    server = GRPCComputeServer(Identity(), port=0)
    server.start(on_ready=lambda: ready.send(server.address))


def serve_raw(ready: Connection) -> None:
    """Echo bytes over a stream, with nothing of ours in the way."""

    async def echo(_: object, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            await context.write(data)

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {"Stream": grpc.stream_stream_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("raw.Echo", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(main())


@contextmanager
def process(target: Callable[[Connection], None]) -> Iterator[str]:
    """Run a server in a process of its own; yields its address."""
    context = multiprocessing.get_context("spawn")  # never fork once gRPC has started
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs,), daemon=True)
    child.start()
    try:
        yield ours.recv()
    finally:
        child.terminate()
        child.join()


def median_of_trips(trip: Callable[[], object]) -> float:
    """Return the p50 of one batch of round trips in seconds."""
    times = []
    for _ in range(TRIPS):
        started = time.perf_counter()
        trip()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronous(ours: str, raw: str, num_pairs: int) -> Ratio:
    """Compare the synchronous clients."""
    from queue import SimpleQueue

    tensor = torch.randn(SHAPE)
    payload = tensor.numpy().tobytes()
    outbox: SimpleQueue[bytes] = SimpleQueue()
    with grpc.insecure_channel(raw) as channel, GRPCComputeClient(ours) as client, client.session() as session:
        replies: Any = channel.stream_stream(RAW_METHOD, None, None)(iter(outbox.get, b""))

        def raw_trip() -> None:
            outbox.put(payload)
            assert len(next(replies)) == len(payload)

        measured = interleaved(
            lambda: median_of_trips(lambda: session.step(tensor)), lambda: median_of_trips(raw_trip), num_pairs
        )
        replies.cancel()
    return told(*measured)


async def asynchronous(ours: str, raw: str, num_pairs: int) -> Ratio:
    """Compare the asyncio clients."""
    tensor = torch.randn(SHAPE)
    payload = tensor.numpy().tobytes()

    async def median(trip: Callable[[], Any]) -> float:
        times = []
        for _ in range(TRIPS):
            started = time.perf_counter()
            await trip()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    async with grpc.aio.insecure_channel(raw) as channel, AsyncComputeClient(ours) as client:
        call: Any = channel.stream_stream(RAW_METHOD, None, None)()
        async with client.session() as session:

            async def raw_trip() -> None:
                await call.write(payload)
                assert len(await call.read()) == len(payload)

            measured: tuple[list[float], list[float]] = ([], [])
            for pair in range(num_pairs + 1):
                ours_s, raw_s = await median(lambda: session.step(tensor)), await median(raw_trip)
                if pair:  # the first is the warm-up
                    measured[0].append(ours_s)
                    measured[1].append(raw_s)
        call.cancel()
    return told(*measured)


def told(ours_s: list[float], raw_s: list[float]) -> Ratio:
    """Print the medians in milliseconds; return the ratio."""
    print(f"    {1000 * statistics.median(ours_s):.3f} ms against {1000 * statistics.median(raw_s):.3f} ms raw")
    return ratio_of(ours_s, raw_s)


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    print(f"session round trip / raw gRPC echo stream, {SHAPE} float32 (mark: at most 1.5)")
    with process(serve_ours) as ours, process(serve_raw) as raw:
        print(f"  synchronous clients: {synchronous(ours, raw, num_pairs)}")
        print(f"  asyncio clients: {asyncio.run(asynchronous(ours, raw, num_pairs))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
