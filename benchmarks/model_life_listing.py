"""What `list_models()` costs through gRPC while a large model loads and another serves.

Five processes beside those of the two models: the server, a client that decodes, an idle process that answers a call
with nothing, a client that asks both in turn every few milliseconds, and this one, which loads and unloads. A call fell
into a load if its own answer says that a model is LOADING or WARMING.
"""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import torch

from benchmarks.models import gpt2_small
from benchmarks.percentiles import percentile, shown
from benchmarks.processes import NUM_THREADS, child, process
from benchmarks.servers import serve_models
from splitlearn_comm import GRPCComputeClient
from splitlearn_manager import ModelSpec
from splitlearn_manager._proto.inference import grpc_service_pb2 as pb
from splitlearn_manager.control import ControlClient

NUM_LAYERS = 20
LARGE, SERVING = (1, 19), (2, 10)
"""Cuts of the one that loads, 510 MB of weights in float32, and of the one that decodes."""
HIDDEN_SIZE = 768
STEPS_OF_A_SESSION = 900
PAUSE_S = 0.002
MARK_MS, GOAL_MS = 10.0, 3.0
INDEX = "/inference.GRPCInferenceService/RepositoryIndex"
NOTHING = "/nothing.Nothing/Nothing"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
ON_ITS_WAY = ("LOADING", "WARMING")


class Asked(NamedTuple):
    """A pair of calls, one right after the other."""

    load: int
    """Into which load the first fell, counted from 1; 0 for none."""
    index_s: float
    nothing_s: float


def serve_nothing(ready: Connection) -> None:
    """Answer a call with nothing until the process is ended; sends the address when it listens."""

    async def nothing(request: bytes, context: object) -> bytes:
        return b""

    async def serve() -> None:
        server = grpc.aio.server()
        handlers = {"Nothing": grpc.unary_unary_rpc_method_handler(nothing)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("nothing.Nothing", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(serve())


def decode(parent: Connection, *, address: str) -> None:
    """Step one session after the other until the process is ended; tells when the first has begun."""
    torch.set_num_threads(NUM_THREADS)
    prompt, token = torch.randn(1, 64, HIDDEN_SIZE), torch.randn(1, 1, HIDDEN_SIZE)
    with GRPCComputeClient(address, model="serving") as client:
        while True:
            with client.session() as session:
                session.step(prompt)
                parent.send(None)
                for _ in range(STEPS_OF_A_SESSION):
                    session.step(token)


def ask(parent: Connection, *, server: str, idle: str) -> None:
    """Ask both in turn until the process is ended.

    Any message is answered by the pairs of calls since the last one.
    """
    with grpc.insecure_channel(server, OWN_CONNECTION) as ours, grpc.insecure_channel(idle, OWN_CONNECTION) as theirs:
        index: Any = ours.unary_unary(INDEX, None, None)
        nothing: Any = theirs.unary_unary(NOTHING, None, None)
        request = pb.RepositoryIndexRequest().SerializeToString()
        asked: list[Asked] = []
        num_loads, was_loading = 0, False
        while True:
            began_s = time.perf_counter()
            answer = index(request)
            index_s = time.perf_counter() - began_s
            is_loading = any(m.state in ON_ITS_WAY for m in pb.RepositoryIndexResponse.FromString(answer).models)
            num_loads, was_loading = num_loads + (is_loading and not was_loading), is_loading
            time.sleep(PAUSE_S)
            began_s = time.perf_counter()
            nothing(b"")
            asked.append(Asked(num_loads if is_loading else 0, index_s, time.perf_counter() - began_s))
            time.sleep(PAUSE_S)
            if parent.poll():
                parent.recv()
                parent.send(asked)
                asked = []


class Asker:
    """The process that asks, as this one sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def asked(self) -> list[Asked]:
        """Return the calls since this was called last."""
        self._pipe.send(None)
        answer: list[Asked] = self._pipe.recv()
        return answer

    def asked_for(self, seconds: float) -> list[Asked]:
        """Return the calls of the next seconds."""
        self.asked()
        time.sleep(seconds)
        return self.asked()


def print_listing(num_loads: int, num_calls: int, seconds: float) -> None:
    """Print the table."""
    with gpt2_small(num_layers=NUM_LAYERS) as directory, ExitStack() as stack:
        served = ModelSpec(name="serving", model=str(directory), split_points=SERVING, num_threads=NUM_THREADS)
        address = stack.enter_context(process(partial(serve_models, specs=(served,))))
        idle = stack.enter_context(process(serve_nothing))
        asker = Asker(stack.enter_context(child(partial(ask, server=address, idle=idle))))
        quiet = asker.asked_for(seconds)
        stack.enter_context(child(partial(decode, address=address))).recv()
        decoding = asker.asked_for(seconds)
        loading = during_loads(asker, address, directory, num_loads, num_calls)
    for name, asked in (
        ("nothing else", quiet),
        ("another decodes", decoding),
        ("another decodes, one loads", loading),
    ):
        print(f"  {name}:\n    list_models(): {shown([each.index_s for each in asked])}")
        print(f"    an idle process, nothing asked of it: {shown([each.nothing_s for each in asked])}")
    spread = ", ".join(str(count) for _, count in sorted(Counter(each.load for each in loading).items()))
    print(f"  calls in each load: {spread}")
    print_difference("than the idle process meanwhile", loading, loading)
    print_difference("than the idle process while nothing else ran", loading, quiet)


def during_loads(asker: Asker, address: str, directory: Path, num_loads: int, num_calls: int) -> list[Asked]:
    """Load and unload, so often at least, until so many calls fell into loads; return those."""
    order: dict[str, str | int | bool] = {
        "model": str(directory),
        "split_points": ",".join(map(str, LARGE)),
        "num_threads": NUM_THREADS,
    }
    fell: list[Asked] = []
    asker.asked()
    with ControlClient(address) as control:
        while len({each.load for each in fell}) < num_loads or len(fell) < num_calls:
            control.load_model("loading", order)
            control.unload_model("loading")
            fell += [each for each in asker.asked() if each.load]
    return fell


def print_difference(name: str, ours: list[Asked], theirs: list[Asked]) -> None:
    """Print by how much the 99th percentile of ours is above that of nothing."""
    index_s = percentile([each.index_s for each in ours], 0.99)
    above_ms = 1000 * (index_s - percentile([each.nothing_s for each in theirs], 0.99))
    verdict = "met, and the goal" if above_ms < GOAL_MS else "met" if above_ms < MARK_MS else "MISSED"
    print(
        f"  p99 of {len(ours)} calls in loads: {above_ms:+.2f} ms more {name} (mark {MARK_MS:g}): {verdict}", flush=True
    )
