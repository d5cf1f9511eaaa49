"""What a server says of how busy it is."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch

from splitlearn_comm import CacheUse, GRPCComputeClient, GRPCComputeServer, Load, NamedHosts, protocol
from splitlearn_comm.framing.service import decode_health, encode_health_question
from splitlearn_comm.messages import HealthReport
from splitlearn_comm.protocol import MODEL_METADATA
from splitlearn_comm.testing import Gated, RunningSumHost, eventually

TOKENS = torch.ones(1, 3, 4)
TOKENS_BYTES = TOKENS.nbytes


def asked(address: str, model: str = "", *, with_load: bool = True) -> HealthReport:
    metadata: Sequence[tuple[str, str]] = ((MODEL_METADATA, model),) if model else ()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(protocol.HEALTH_CHECK, None, None)
        return decode_health(call(encode_health_question(with_load=with_load), metadata=metadata, timeout=20))


def test_sessions_and_their_caches_are_counted() -> None:
    with GRPCComputeServer(RunningSumHost(), port=0) as server, GRPCComputeClient(server.address) as client:
        assert asked(server.address) == HealthReport(serving=True, models=("running sum",), load=Load())
        with client.session() as session, client.session():
            session.step(TOKENS)
            assert asked(server.address).load == Load(sessions=2, kv_bytes=TOKENS_BYTES)
        eventually(lambda: asked(server.address).load == Load())


def test_a_call_that_is_under_way_is_a_step() -> None:
    gated = Gated()
    with (
        GRPCComputeServer(gated, port=0) as server,
        GRPCComputeClient(server.address) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        calls = [pool.submit(client.compute, TOKENS) for _ in range(3)]
        eventually(lambda: asked(server.address).load == Load(steps=3))
        gated.gate.set()
        assert all(torch.equal(call.result(), TOKENS) for call in calls)
        assert asked(server.address).load == Load()


def test_a_step_that_is_under_way_is_one_too() -> None:
    gated = Gated()
    with (
        GRPCComputeServer(gated, port=0) as server,
        GRPCComputeClient(server.address) as client,
        ThreadPoolExecutor(1) as pool,
        client.session() as session,
    ):
        step = pool.submit(session.step, TOKENS)
        eventually(lambda: asked(server.address).load == Load(steps=1, sessions=1))
        gated.gate.set()
        step.result()
        assert asked(server.address).load == Load(sessions=1)


def test_of_several_models_the_one_that_is_named_is_told_or_all_together() -> None:
    hosts = NamedHosts({"small": RunningSumHost(), "large": RunningSumHost()})
    with GRPCComputeServer(hosts, port=0) as server, GRPCComputeClient(server.address, model="small") as client:
        with client.session() as session, GRPCComputeClient(server.address, model="large") as other, other.session():
            session.step(TOKENS)
            assert asked(server.address, "small").load == Load(sessions=1, kv_bytes=TOKENS_BYTES)
            assert asked(server.address, "large").load == Load(sessions=1)
            assert asked(server.address).load == Load(sessions=2, kv_bytes=TOKENS_BYTES)
        missing = HealthReport(serving=False, models=("small", "large"))
        assert asked(server.address, "medium") == missing


def test_without_being_asked_for_the_load_only_health_is_told() -> None:
    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        assert asked(server.address, with_load=False) == HealthReport(serving=True)
        assert asked(server.address, "another", with_load=False) == HealthReport(serving=False)


class Reluctant(RunningSumHost):
    """Says once what its caches take, and then no more."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self._fails = fails
        self._num_asked = 0

    async def cache_use(self) -> CacheUse:
        self._num_asked += 1
        if self._num_asked == 1:
            return CacheUse(num_bytes=5, limit_bytes=10)
        if self._fails:
            raise RuntimeError("no")
        await asyncio.sleep(3600)
        raise AssertionError("cancelled before")


@pytest.mark.parametrize("fails", [False, True], ids=["is slow", "fails"])
def test_of_a_host_that_does_not_say_what_its_caches_take_the_last_counts(fails: bool) -> None:
    with GRPCComputeServer(Reluctant(fails=fails), port=0) as server:
        for _ in range(2):
            assert asked(server.address).load == Load(kv_bytes=5, kv_limit_bytes=10)


def test_loads_add_up_and_have_a_limit_only_where_both_have() -> None:
    limited = Load(steps=1, sessions=2, kv_bytes=3, kv_limit_bytes=4)
    assert limited + limited == Load(steps=2, sessions=4, kv_bytes=6, kv_limit_bytes=8)
    assert (limited + Load(kv_bytes=1)).kv_limit_bytes == 0
