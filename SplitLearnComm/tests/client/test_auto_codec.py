"""`codec="auto"` over real connections, through links orders of magnitude apart."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    ClientLimits,
    CommError,
    DeadlineExceededError,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    ResourceExhaustedError,
    ServiceInfo,
)
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.codec import AutoCodec, CodecChoice, CodecPlan, registry
from splitlearn_comm.messages import Codecs
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import (
    DroppingPeer,
    Identity,
    LinkEmulator,
    LinkQuality,
    RunningSumHost,
    ServerProcess,
    eventually,
)

SLOW = LinkQuality(bytes_per_s=1e6)
HIDDEN_BTH = torch.randn(1, 64, 512, generator=torch.Generator().manual_seed(0)).bfloat16().float()
"""Numbers of bfloat16 in float32: half of their bytes are zeros."""
KL = {"bf16": 1e-5, "fp16": 1e-6, "int8": 4e-4, "int4": 2e-2}


def chosen_by_both(address: str, codec: AutoCodec) -> list[CodecChoice | None]:
    """What a synchronous and an asyncio client choose."""

    async def asynchronous() -> CodecChoice | None:
        async with AsyncComputeClient(address, codec=codec) as client, client.session() as session:
            assert client.codec_choices() == {address: session.codec_choice}
            return session.codec_choice

    with Client(address, codec=codec) as client:
        assert client.codec_choices() == {}
        with client.session() as session:
            assert client.codec_choices() == {address: session.codec_choice}
            return [session.codec_choice, asyncio.run(asynchronous())]


def test_over_loopback_nothing_is_lost(sums: str) -> None:
    for choice in chosen_by_both(sums, AutoCodec(sample=HIDDEN_BTH)):
        assert choice is not None
        # Raw, unless the machine is so busy that loopback is a slow link.
        assert choice.codec in {"raw", "zstd"}
        assert str(choice).startswith(f"{choice.codec}: over ")


def test_over_a_slow_link_zstd_is_faster_and_loses_nothing(sums: str) -> None:
    with LinkEmulator(sums, SLOW) as link:
        for choice in chosen_by_both(link.address, AutoCodec(sample=HIDDEN_BTH, kl=KL)):
            assert choice is not None
            assert choice.codec == "zstd"
            bandwidth = float(choice.reason.split("over ")[1].split(" MB/s")[0])
            assert 0 < bandwidth < 1.1  # of the link, and no more
            assert "int8" not in choice.reason


@pytest.mark.parametrize(("max_kl", "expected"), [(1.0, "int4"), (1e-3, "int8"), (1e-4, "bf16"), (0.0, "zstd")])
def test_a_lossy_one_is_taken_if_it_loses_no_more_than_is_accepted(sums: str, max_kl: float, expected: str) -> None:
    sample = torch.randn(1, 64, 512)
    with LinkEmulator(sums, SLOW) as link:
        for choice in chosen_by_both(link.address, AutoCodec(max_kl=max_kl, kl=KL, sample=sample)):
            assert choice is not None
            assert choice.codec in ({"bf16", "fp16"} if expected == "bf16" else {expected})


def test_what_is_chosen_is_what_is_sent() -> None:
    with (
        GRPCComputeServer(Identity(), port=0) as server,
        LinkEmulator(server.address, LinkQuality(bytes_per_s=1e6)) as link,
        Client(link.address, codec=CodecPlan(hidden=AutoCodec(sample=HIDDEN_BTH), kv="bf16"), timings=True) as client,
        client.session() as session,
    ):
        assert torch.equal(session.step(HIDDEN_BTH), HIDDEN_BTH)
        assert session.breakdown is not None
        assert session.breakdown.bytes_sent < 0.6 * HIDDEN_BTH.nbytes
        assert session.breakdown.bytes_received < 0.6 * HIDDEN_BTH.nbytes


def test_it_is_measured_and_said_once_for_each_server(sums: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "splitlearn_comm"), Client(sums, codec="auto") as client:
        client.session().close()
        measured = client.statistics().bytes_sent
        client.session().close()
        assert client.statistics().bytes_sent - measured < 1000
        said = [record for record in caplog.records if record.getMessage().startswith("codec for")]
        assert [record.getMessage() for record in said] == [f"codec for {sums}: {client.codec_choices()[sums]}"]
        assert {record.levelno for record in said} == {logging.INFO}


def test_a_session_keeps_its_codec_at_another_server() -> None:
    hidden_BTH = torch.randint(-9, 9, (1, 40, 4)).float()
    sums = "splitlearn_comm.testing:RunningSumHost"
    with (
        ServerProcess(sums) as first,
        ServerProcess(sums) as second,
        LinkEmulator(first.address, SLOW) as link,
        Client(
            AddressBook([link.address, second.address], in_order=True), codec=AutoCodec(sample=HIDDEN_BTH)
        ) as client,
        client.session() as session,
    ):
        before = session.step(hidden_BTH[:, :20])
        first.kill()
        after = session.step(hidden_BTH[:, 20:])
        assert client.statistics().failovers == 1
        assert session.codec_choice is not None
        assert session.codec_choice.codec == "zstd"
        assert torch.equal(torch.cat((before, after), dim=1), hidden_BTH.cumsum(1))


def test_a_server_that_cannot_be_asked_is_passed_over(sums: str) -> None:
    with Client(AddressBook(["localhost:1", sums], in_order=True), codec="auto") as client, client.session() as session:
        assert list(client.codec_choices()) == [sums]
        session.step(torch.ones(1, 2, 4))


def test_only_codecs_that_both_sides_have_are_compared(sums: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Magic(registry.CastCodec):
        is_lossless = True

    # Known in this process only; the server runs in another.
    monkeypatch.setitem(registry._codecs, "magic", Magic("magic", torch.bfloat16))
    with LinkEmulator(sums, SLOW) as link, Client(link.address, codec=AutoCodec(sample=HIDDEN_BTH)) as client:
        with client.session() as session:
            assert session.codec_choice is not None
            assert session.codec_choice.codec == "zstd"
        monkeypatch.setattr(registry._codecs["zstd"], "missing_extra", "client")
    with LinkEmulator(sums, SLOW) as link, Client(link.address, codec=AutoCodec(sample=HIDDEN_BTH)) as client:
        assert client.session().codec_choice is not None
        assert client.codec_choices()[link.address].codec == "raw"


def test_a_server_that_takes_any_tensor_wants_a_sample() -> None:
    with GRPCComputeServer(Identity(), port=0) as server:
        with Client(server.address, codec="auto") as client, pytest.raises(ValueError, match=r"AutoCodec\(sample="):
            client.session()
        with Client(server.address, codec=AutoCodec(sample=torch.ones(9))) as client, client.session() as session:
            assert torch.equal(session.step(torch.ones(1, 2)), torch.ones(1, 2))


def test_a_client_that_may_send_little_chooses_from_what_it_could_see_and_opens() -> None:
    limits = ClientLimits(bytes_per_s=60_000.0)
    with GRPCComputeServer(RunningSumHost(), port=0, config=GRPCServerConfig(client_limits=limits)) as server:
        for choice in chosen_by_both(server.address, AutoCodec(sample=HIDDEN_BTH)):
            assert choice is not None
        assert server.statistics().sessions_opened == 2
        assert server.statistics().bytes_received < 2 * 300_000


def test_without_auto_nothing_is_asked() -> None:
    with GRPCComputeServer(RunningSumHost(), port=0) as server, Client(server.address, codec="bf16") as client:
        with client.session() as session:
            assert session.codec_choice is None
        assert client.codec_choices() == {}
        assert server.statistics().bytes_received < 500


@pytest.mark.parametrize(("options", "said"), [
    ({"codec": "auto", "max_kl": 1e-3}, r"knows no model.*AutoCodec\(max_kl=0.001, kl="),
    ({"codec": AutoCodec(max_kl=1e-3)}, "knows no model"),
    ({"codec": "int8", "max_kl": 1e-3}, "max_kl=0.001 goes with codec='auto', came codec='int8'"),
    ({"codec": AutoCodec(kl=KL), "max_kl": -1.0}, "expected 0 or more, came -1"),
    ({"codec": Codecs(to_server="auto")}, "no codec 'auto'"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_anything_is_sent(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Client("localhost:1", **options)  # type: ignore[arg-type]


def test_the_loss_accepted_may_be_given_beside_what_codecs_lose(sums: str) -> None:
    with LinkEmulator(sums, SLOW) as link:
        auto = AutoCodec(kl=KL, sample=torch.randn(1, 64, 512))
        with Client(link.address, codec=auto, max_kl=1e-3) as client, client.session() as session:
            assert session.codec_choice is not None
            assert session.codec_choice.codec == "int8"


def test_a_sample_has_elements() -> None:
    with pytest.raises(ValueError, match="expected one with elements"):
        AutoCodec(sample=torch.empty(0, 3))


def test_a_pause_for_which_there_is_no_time_is_left_out() -> None:
    # The probe's first message is over what may be sent in an hour.
    limits = ClientLimits(bytes_per_s=1.0)
    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=GRPCServerConfig(client_limits=limits)) as server,
        Client(server.address, codec="auto", connect_timeout_s=60) as client,
    ):
        began_s = time.monotonic()
        with pytest.raises(ResourceExhaustedError):
            client.session()
        # Of how long single messages took, on a machine that may have other things to do.
        assert client.codec_choices()[server.address].codec in ("raw", "zstd")
        assert time.monotonic() - began_s < 30

        async def asynchronous() -> None:
            async with AsyncComputeClient(server.address, codec="auto", connect_timeout_s=60) as other:
                with pytest.raises(ResourceExhaustedError):
                    await other.session().open()

        asyncio.run(asynchronous())
        assert time.monotonic() - began_s < 60


def test_who_waits_for_the_choice_of_another_waits_no_longer_than_there_is_time() -> None:
    with (
        DroppingPeer() as silent,
        ThreadPoolExecutor(1) as pool,
        Client(silent.address, codec="auto") as client,
    ):
        holding = pool.submit(client._choose_codec, silent.address, Deadline.after(30))
        eventually(client._choosing[silent.address].locked)
        with pytest.raises(DeadlineExceededError, match=r"within 0.2 s"):
            client._choose_codec(silent.address, Deadline.after(0.2))
        assert not holding.done()
        client.close()
        assert isinstance(holding.exception(), CommError)


def test_a_step_waits_for_the_choice_of_another_session_as_long_as_it_may() -> None:
    async def run(address: str) -> None:
        async with AsyncComputeClient(address, codec="auto", connect_timeout_s=30) as client:
            opening = asyncio.create_task(client.session().open())
            await asyncio.sleep(0)
            with pytest.raises(DeadlineExceededError, match=r"within 0.3 s"):
                await client.session().step(torch.ones(1, 1, 4), timeout_s=0.3)
            assert not opening.done()
            opening.cancel()

    with DroppingPeer() as silent:
        asyncio.run(run(silent.address))


def test_the_choice_for_one_server_is_not_waited_for_by_another(sums: str) -> None:
    async def run(silent: str) -> None:
        async with AsyncComputeClient(
            AddressBook([silent, sums], in_order=True), codec="auto", connect_timeout_s=30
        ) as client:
            deadline = asyncio.timeout(20)
            async with deadline:
                hanging = asyncio.create_task(client._choose_codec(silent, Deadline.after(30)))
                await asyncio.sleep(0)
                assert (await client._choose_codec(sums, Deadline.after(10))).codec == "raw"
                assert not hanging.done()
                hanging.cancel()

    with DroppingPeer() as silent:
        asyncio.run(run(silent.address))


def test_codecs_are_measured_where_the_event_loop_does_not_wait(sums: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_on: list[threading.Thread] = []

    def kl(name: str) -> float:
        measured_on.append(threading.current_thread())
        return 0.0

    costs = AutoCodec.costs
    monkeypatch.setattr(
        AutoCodec, "costs", lambda *given: measured_on.append(threading.current_thread()) or costs(*given)
    )

    async def run(address: str) -> None:
        codec = AutoCodec(max_kl=1.0, kl=kl, sample=torch.randn(1, 64, 512))
        async with AsyncComputeClient(address, codec=codec) as client, client.session():
            pass

    with LinkEmulator(sums, SLOW) as link:
        asyncio.run(run(link.address))
    assert len(measured_on) >= 2
    assert threading.main_thread() not in measured_on


@pytest.mark.parametrize("hidden_size", [0, 2**31])
def test_a_server_with_impossible_hidden_states_is_refused_in_the_words_of_this_package(hidden_size: int) -> None:
    class Odd(RunningSumHost):
        def get_info(self) -> ServiceInfo:
            return replace(super().get_info(), hidden_size=hidden_size)

    with (
        GRPCComputeServer(Odd(), port=0) as server,
        Client(server.address, codec="auto") as client,
        pytest.raises(InvalidRequestError, match=f"have {hidden_size} elements"),
    ):
        client.session()


@pytest.mark.parametrize(("hidden_size", "num_tokens"), [(4096, 128), (1 << 20, 4), (1 << 24, 1)])
def test_the_sample_is_no_larger_than_tells_something(hidden_size: int, num_tokens: int) -> None:
    assert AutoCodec().sample_for(hidden_size, None).shape == (1, num_tokens, hidden_size)
