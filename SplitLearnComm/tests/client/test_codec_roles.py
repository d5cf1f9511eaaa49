"""Codecs for each role, over a real connection."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from splitlearn_comm import AddressBook, AsyncComputeClient, GRPCComputeServer, KVEntries, UnsupportedOperationError
from splitlearn_comm.codec import CodecPlan, registry
from splitlearn_comm.messages import Codecs
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import RunningSumHost

HIDDEN_BTH = torch.full((1, 3, 4), 1 + 2**-12)
"""bfloat16 has no such number: it becomes 1."""


def cached_by_both(address: str, plan: CodecPlan) -> list[tuple[torch.Tensor, KVEntries]]:
    """What a synchronous and an asyncio client get: the sums up to a fourth token, and the cache after it."""

    async def asynchronous() -> tuple[torch.Tensor, KVEntries]:
        async with AsyncComputeClient(address, codec=plan) as client:
            _, cache = await client.compute(HIDDEN_BTH, use_cache=True)
            return await client.compute(torch.zeros(1, 1, 4), past_key_values=cache, use_cache=True)

    with Client(address, codec=plan) as client:
        _, cache = client.compute(HIDDEN_BTH, use_cache=True)
        after = client.compute(torch.zeros(1, 1, 4), past_key_values=cache, use_cache=True)
    return [after, asyncio.run(asynchronous())]


@pytest.mark.parametrize("kv", [Codecs(to_server="bf16"), Codecs(to_client="bf16"), "bf16"])
def test_a_cache_that_travels_with_calls_goes_through_its_codec(sums: str, kv: str | Codecs) -> None:
    for output, cache in cached_by_both(sums, CodecPlan(kv=kv)):
        assert torch.equal(output, torch.full((1, 1, 4), 3.0))
        assert torch.equal(cache.entries[0].tensors["inputs"][:, :3], torch.ones(1, 3, 4))


def test_a_cache_is_raw_whatever_hidden_states_are(sums: str) -> None:
    for output, cache in cached_by_both(sums, CodecPlan(hidden="bf16", gradient="int8")):
        assert torch.equal(output, torch.full((1, 1, 4), 3 + 3 * 2**-12))
        assert torch.equal(cache.entries[0].tensors["inputs"][:, :3], HIDDEN_BTH)


@pytest.mark.parametrize(("plan", "expected"), [
    (CodecPlan(), 3 + 3 * 2**-12),
    (CodecPlan(kv=Codecs(to_client="bf16")), 3.0),
    (CodecPlan(kv=Codecs(to_server="bf16")), 3.0),
    (CodecPlan(kv="zstd"), 3 + 3 * 2**-12),
])  # fmt: skip
def test_a_session_moves_with_its_state_through_the_codec(plan: CodecPlan, expected: float) -> None:
    old = GRPCComputeServer(RunningSumHost(), port=0)
    old.start(block=False)
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as new,
        Client(AddressBook([old.address, new.address], in_order=True), codec=plan) as client,
        ThreadPoolExecutor(1) as pool,
        client.session() as session,
    ):
        session.step(HIDDEN_BTH)
        stopping = pool.submit(old.stop, grace_s=60)
        while not client.statistics().moves:  # the next answers ask the client to go
            output = session.step(torch.zeros(1, 1, 4))
        stopping.result()
        output = session.step(torch.zeros(1, 1, 4))
        assert client.statistics().replayed_steps == 0
    assert torch.equal(output, torch.full((1, 1, 4), expected))


@pytest.mark.parametrize("role", ["gradient", "kv"])
def test_a_codec_that_the_server_has_not_is_refused_for_every_role(
    sums: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Known in this process only; the server runs in another.
    monkeypatch.setitem(registry._codecs, "mine", registry._codecs["bf16"])
    with (
        Client(sums, codec=CodecPlan(**{role: Codecs(to_client="mine")})) as client,  # type: ignore[arg-type]
        pytest.raises(UnsupportedOperationError, match="no codec 'mine'"),
    ):
        client.session()


def test_a_call_with_a_codec_that_the_server_has_not_is_refused(sums: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._codecs, "mine", registry._codecs["bf16"])
    with Client(sums, codec=CodecPlan(kv="mine")) as client, pytest.raises(UnsupportedOperationError, match="'mine'"):
        client.compute(HIDDEN_BTH, use_cache=True)


def test_a_plan_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="'int4' is not for kv: expected one of raw, bf16, fp16, zstd"):
        CodecPlan(kv="int4")
    with pytest.raises(ValueError, match="no codec 'int3'"):
        CodecPlan(gradient=Codecs(to_client="int3"))


def test_what_is_agreed_on_is_raw_unless_it_is_named() -> None:
    agreed = CodecPlan(hidden="int8", gradient=Codecs("bf16"), kv="raw").agreed
    assert (agreed.hidden, agreed.gradient, agreed.kv) == (Codecs("int8", "int8"), Codecs("bf16", ""), Codecs("", ""))
