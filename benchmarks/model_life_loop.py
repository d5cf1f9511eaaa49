"""What loading costs the loop that serves meanwhile, and what a process of its own costs a step; in this process.

The loop ticks every millisecond; by how much it is late is its lag. `list_models()` is asked for at every tick, spread
over loads of a model while another decodes, each in a process of its own. The same while nothing loads is what to hold
it against, and so is a load in a thread of the serving process.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.percentiles import shown
from benchmarks.processes import NUM_THREADS
from splitlearn_comm import Forward, SessionHost
from splitlearn_comm.worker import WorkerThread
from splitlearn_core import load_part
from splitlearn_manager.lifecycle import ModelManager, ModelSpec
from splitlearn_manager.runtime.model_process import ModelProcess
from splitlearn_manager.runtime.process_host import ProcessHost

TICK_S = 0.001
CADENCE_S = 0.02
HIDDEN_SIZE = 768
POINTS = (2, 10)


class Watch:
    """Asks a manager for its models over and over, and notes how late the loop is, until it is stopped."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self.lag_s: list[float] = []
        self.list_s: list[float] = []

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self.lag_s.append(max(0.0, time.perf_counter() - due))
            began = time.perf_counter()
            await self._manager.list_models()
            self.list_s.append(time.perf_counter() - began)

    async def during(self, work: Awaitable[object]) -> None:
        """Go on for as long as the work takes."""
        task = asyncio.create_task(self.run())
        try:
            await work
        finally:
            task.cancel()


async def decode(host: SessionHost) -> None:
    """Step a session, one token after the other, until cancelled."""
    await host.open_session("decoding")
    token = torch.randn(1, 1, HIDDEN_SIZE)
    try:
        for _ in range(1000):
            await host.run_step("decoding", Forward(token))
    finally:
        await host.close_session("decoding")


async def print_lag(directory: Path, num_loads: int, seconds: float) -> None:
    """Print how late the loop is while a model loads and another serves."""
    spec = ModelSpec(name="serving", model=str(directory), num_threads=NUM_THREADS, split_points=POINTS)
    loading = ModelSpec(name="loading", model=str(directory), num_threads=NUM_THREADS, split_points=POINTS)
    async with ModelManager() as manager:
        await manager.load_model(spec)
        watches = {name: Watch(manager) for name in ("decoding", "decoding, loading", "decoding, loading in a thread")}
        with manager.host_for("serving") as lease:
            decoding = asyncio.create_task(decode(lease.host))
            await watches["decoding"].during(asyncio.sleep(seconds))
            for _ in range(num_loads):
                await watches["decoding, loading"].during(manager.load_model(loading))
                await manager.unload_model("loading")
            in_thread = partial(load_part, str(directory), "trunk", POINTS)
            await watches["decoding, loading in a thread"].during(asyncio.to_thread(in_thread))
            decoding.cancel()
            await asyncio.wait([decoding])
    for name, watch in watches.items():
        print(f"  {name}:\n    lag of the loop: {shown(watch.lag_s)}\n    list_models():   {shown(watch.list_s)}")


async def trips(trip: Callable[[], Awaitable[object]], count: int, pause_s: float) -> float:
    """Return the median seconds of a trip, so long after the one before."""
    times = []
    for _ in range(count):
        end = time.perf_counter() + pause_s
        while time.perf_counter() < end:  # nobody sleeps: at the cadence of generation this side computes
            pass
        began = time.perf_counter()
        await trip()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def print_round_trips(count: int, num_rounds: int) -> None:
    """Print what a step through a process costs beside a hand-off to a thread: 3 KB each way, nothing computed."""
    process = ModelProcess(ModelSpec(name="echo", num_threads=NUM_THREADS), program="benchmarks.model_life_echo")
    await process.load()
    host, worker = ProcessHost(process), WorkerThread("echo")
    await host.open_session("a")
    action = Forward(torch.randn(1, 1, HIDDEN_SIZE))
    kinds: dict[str, Callable[[], Awaitable[object]]] = {
        "a thread": lambda: worker.run(lambda: action.hidden),
        "a process": lambda: host.run_step("a", action),
    }
    try:
        for name, pause_s, number in (("back to back", 0.0, count), ("every 20 ms", CADENCE_S, count // 20)):
            medians: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(num_rounds):
                for kind, trip in kinds.items():
                    medians[kind].append(await trips(trip, number, pause_s))
            told = ", ".join(f"{kind} {statistics.median(values) * 1e6:.0f} us" for kind, values in medians.items())
            print(f"  {name}: p50 of {told}")
    finally:
        await worker.shutdown()
        await process.end()
