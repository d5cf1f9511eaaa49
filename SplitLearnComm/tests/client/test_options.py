"""What a client asks of its sessions: codecs, chunks, the breakdown; over a real connection."""

import asyncio
import inspect
import re
from dataclasses import fields

import pytest
import torch

from splitlearn_comm import AsyncComputeClient, GRPCComputeClient, GRPCComputeServer, UnsupportedOperationError
from splitlearn_comm.client import ClientOptions, ClientSettings, StepBreakdown
from splitlearn_comm.messages import Codecs
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import Identity

LARGE = (1, 700, 1024)
"""2.9 MB of float32: several chunks."""


def stepped_by_both(address: str, tensor: torch.Tensor, **options: object) -> list[torch.Tensor]:
    """What a synchronous and an asyncio client get for a tensor."""

    async def asynchronous() -> torch.Tensor:
        async with AsyncComputeClient(address, **options) as client, client.session() as session:  # type: ignore[arg-type]
            return await session.step(tensor)

    with GRPCComputeClient(address, **options) as client, client.session() as session:  # type: ignore[arg-type]
        return [session.step(tensor), asyncio.run(asynchronous())]


def test_a_large_tensor_goes_in_chunks_both_ways(sums: str) -> None:
    tensor = torch.randint(-9, 9, (20_000, 12, 4)).float()  # 3.8 MB; sums of integers are exact
    for output in stepped_by_both(sums, tensor):
        assert torch.equal(output, tensor.cumsum(1))


@pytest.mark.parametrize("shape", [(1, 7, 64), LARGE])
@pytest.mark.parametrize(("codec", "loss"), [("bf16", 0.01), ("int8", 0.05), ("zstd", 0.0)])
def test_a_codec_is_used_in_both_directions(codec: str, loss: float, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    with GRPCComputeServer(Identity(), port=0) as server:
        for output in stepped_by_both(server.address, tensor, codec=codec):
            assert float((output - tensor).abs().max()) <= loss * float(tensor.abs().max())
            assert output.dtype is torch.float32
        with GRPCComputeClient(server.address, codec=codec) as client, client.session() as session:
            session.step(tensor)
            counted = client.statistics()
    assert counted.bytes_sent < tensor.nbytes * 0.97 + 200
    assert counted.bytes_received < tensor.nbytes * 0.97 + 200


def test_a_codec_in_one_direction_leaves_the_other_alone() -> None:
    tensor = torch.randn(1, 100, 256)
    with (
        GRPCComputeServer(Identity(), port=0) as server,
        GRPCComputeClient(server.address, codec=Codecs(to_server="bf16"), timings=True) as client,
        client.session() as session,
    ):
        output = session.step(tensor)
        assert torch.equal(output, tensor.bfloat16().float())
        assert session.breakdown is not None
        assert session.breakdown.bytes_sent < 0.52 * tensor.nbytes
        assert session.breakdown.bytes_received > tensor.nbytes


def test_an_unknown_codec_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="no codec 'int3': expected one of raw"):
        GRPCComputeClient("localhost:1", codec="int3")


def test_a_codec_that_the_server_has_not_is_refused_when_the_session_opens(
    sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitlearn_comm.codec import registry

    # Known in this process only; the server runs in another.
    monkeypatch.setitem(registry._codecs, "mine", registry._codecs["bf16"])
    with (
        GRPCComputeClient(sums, codec="mine") as client,
        pytest.raises(UnsupportedOperationError, match="no codec 'mine'"),
    ):
        client.session()


def test_the_breakdown_adds_up(sums: str) -> None:
    with GRPCComputeClient(sums, timings=True) as client, client.session() as session:
        assert session.breakdown is None
        session.step(torch.ones(1, 2, 4))
        breakdown = session.breakdown
    assert isinstance(breakdown, StepBreakdown)
    parts = (breakdown.queue_s, breakdown.compute_s, breakdown.serialise_s, breakdown.network_s)
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(breakdown.total_s)
    assert breakdown.bytes_sent > 32
    assert breakdown.bytes_received > 32


def test_without_the_option_there_is_no_breakdown(sums: str) -> None:
    with GRPCComputeClient(sums) as client, client.session() as session:
        session.step(torch.ones(1, 2, 4))
        assert session.breakdown is None


def test_every_setting_beside_the_address_is_an_option_that_a_type_checker_knows() -> None:
    assert set(ClientOptions.__annotations__) == {item.name for item in fields(ClientSettings)} - {"addresses"}


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="timeout"):
        GRPCComputeClient("localhost:1", timeout=3)  # type: ignore[call-arg]


def test_the_short_name_tells_its_options() -> None:
    told = set(re.findall(r"`(\w+)`", inspect.getdoc(Client) or "")) - {"GRPCComputeClient", "ClientSettings"}
    assert told == set(ClientOptions.__annotations__)
