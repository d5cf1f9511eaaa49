"""A hosted trunk as Comm's server uses it: the contract of a session host, and what happens when a step fails."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from splitlearn_comm import (
    ComputeCall,
    Crop,
    Forward,
    GRPCComputeServer,
    InvalidRequestError,
    KVEntries,
    KVEntry,
    RemoteInternalError,
    SessionHost,
    SessionNotFoundError,
)
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import SessionHostContract
from splitlearn_core import Trunk
from splitlearn_core.testing import random_hidden, reference, tiny_trunk
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk

torch.set_num_threads(1)


class TestHostedTrunk(SessionHostContract):
    tolerance = 1e-5

    def make_host(self) -> SessionHost:
        return HostedTrunk(tiny_trunk(), name="tiny")

    def make_hidden(self, batch: int, num_tokens: int) -> torch.Tensor:
        return random_hidden(batch, num_tokens, seed=torch.seed() % 1000)


@pytest.fixture
def trunk() -> Trunk:
    return tiny_trunk()


@pytest.fixture
def client(trunk: Trunk) -> Iterator[Client]:
    with GRPCComputeServer(HostedTrunk(trunk, name="tiny"), port=0) as server, Client(server.address) as client:
        yield client


def test_it_says_what_it_hosts(trunk: Trunk) -> None:
    trunk.fingerprint = "abc"
    info = HostedTrunk(trunk, name="tiny").get_info()
    assert (info.name, info.fingerprint, info.split_points, info.num_layers) == ("tiny", "abc:1-5", (1, 5), 6)
    assert (info.hidden_size, info.dtype, info.max_positions, info.model_type) == (32, torch.float32, 64, "llama")
    assert info.stateful


def test_the_trunk_is_put_into_evaluation_mode(trunk: Trunk) -> None:
    trunk.train()
    HostedTrunk(trunk, name="tiny")
    assert not trunk.training


def test_a_cache_that_travels_equals_a_session_and_the_whole(trunk: Trunk, client: Client) -> None:
    hidden_BTH = random_hidden(2, 6)
    trunk_kv: KVEntries | None = None
    stateless, stateful = [], []
    with client.session() as session:
        for piece_BTH in (hidden_BTH[:, :3], hidden_BTH[:, 3:4], hidden_BTH[:, 4:5], hidden_BTH[:, 5:]):
            output, trunk_kv = client.compute(piece_BTH, past_key_values=trunk_kv, use_cache=True)
            stateless.append(output)
            stateful.append(session.step(piece_BTH))
            assert trunk_kv.position == session.position
    assert torch.equal(torch.cat(stateless, 1), torch.cat(stateful, 1))
    torch.testing.assert_close(torch.cat(stateful, 1), reference(trunk, hidden_BTH), rtol=0, atol=1e-5)


def test_an_old_cache_may_be_used_again(client: Client) -> None:
    hidden_BTH = random_hidden(1, 4)
    _, trunk_kv = client.compute(hidden_BTH[:, :3], use_cache=True)
    once = client.compute(hidden_BTH[:, 3:], past_key_values=trunk_kv)
    again = client.compute(hidden_BTH[:, 3:], past_key_values=trunk_kv)
    assert torch.equal(once, again)


def test_a_cache_of_another_trunk_is_refused(client: Client) -> None:
    hidden_BTH = random_hidden(1, 1)
    _, trunk_kv = client.compute(hidden_BTH, use_cache=True)
    cut_short = KVEntries(trunk_kv.entries[1:], trunk_kv.position)
    with pytest.raises(InvalidRequestError, match="not those of this trunk: expected the cache of layers"):
        client.compute(hidden_BTH, past_key_values=cut_short)
    assert client.compute(hidden_BTH, past_key_values=trunk_kv).shape == hidden_BTH.shape


def test_many_sessions_in_turn_are_exact(trunk: Trunk, client: Client) -> None:
    sequences = [random_hidden(1 + seed % 2, 8 + seed, seed) for seed in range(5)]
    outputs: list[list[torch.Tensor]] = [[] for _ in sequences]
    sessions = [client.session() for _ in sequences]
    for index in range(max(sequence.shape[1] for sequence in sequences)):
        for session, sequence_BTH, output in zip(sessions, sequences, outputs, strict=True):
            if index < sequence_BTH.shape[1]:
                output.append(session.step(sequence_BTH[:, index : index + 1]))
    for session, sequence_BTH, output in zip(sessions, sequences, outputs, strict=True):
        session.close()
        torch.testing.assert_close(torch.cat(output, 1), reference(trunk, sequence_BTH), rtol=0, atol=1e-5)


class Breakable(HostedTrunk):
    """A hosted trunk of which a layer fails half-way through when told to."""

    def __init__(self, trunk: Trunk, *, name: str) -> None:
        super().__init__(trunk, name=name)
        self.is_broken = False
        next(m for n, m in trunk.named_modules() if n.endswith("layers.3")).register_forward_pre_hook(self._fail)

    def _fail(self, *_: Any) -> None:
        if self.is_broken:
            raise RuntimeError("the reason that nobody else may see")


def test_a_step_that_fails_ends_its_session_and_no_other(trunk: Trunk) -> None:
    hidden_BTH = random_hidden(1, 4)
    expected_BTH = reference(trunk, hidden_BTH)
    host = Breakable(trunk, name="tiny")
    with GRPCComputeServer(host, port=0) as server, Client(server.address) as client:
        failing, other = client.session(), client.session()
        for session in (failing, other):
            session.step(hidden_BTH[:, :3])
        host.is_broken = True
        with pytest.raises(RemoteInternalError) as caught:
            failing.step(hidden_BTH[:, 3:])
        assert "nobody" not in str(caught.value)
        assert caught.value.request_id is not None
        assert caught.value.request_id in str(caught.value)
        host.is_broken = False
        with pytest.raises(SessionNotFoundError, match=r"failed inside the service.*open a new"):
            failing.step(hidden_BTH[:, 3:])
        torch.testing.assert_close(other.step(hidden_BTH[:, 3:]), expected_BTH[:, 3:], rtol=0, atol=1e-5)
        with client.session() as again:
            assert torch.equal(again.step(hidden_BTH), expected_BTH)


def test_what_is_refused_leaves_the_session_alone(client: Client) -> None:
    hidden_BTH = random_hidden(1, 4)
    with client.session() as session:
        session.step(hidden_BTH[:, :3])
        with pytest.raises(InvalidRequestError):
            session.step(hidden_BTH[:, 3:, :5])
        assert session.step(hidden_BTH[:, 3:]).shape == (1, 1, 32)


class Slow(HostedTrunk):
    """A hosted trunk whose forward waits until it may go on."""

    def __init__(self, trunk: Trunk, *, name: str) -> None:
        super().__init__(trunk, name=name)
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()
        self.threads: set[str] = set()
        trunk.register_forward_pre_hook(self._wait)

    def _wait(self, *_: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.has_begun.set()
        assert self.may_go_on.wait(60)


def test_the_server_answers_while_the_model_computes(trunk: Trunk) -> None:
    host = Slow(trunk, name="tiny")
    with GRPCComputeServer(host, port=0) as server, Client(server.address) as client:
        results: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: results.append(client.compute(random_hidden(1, 2))))
        thread.start()
        assert host.has_begun.wait(60)
        with Client(server.address) as other:
            assert other.health()
            assert other.get_info().name == "tiny"
            session = other.session()
            session.close()
        assert results == []
        host.may_go_on.set()
        thread.join()
        assert results[0].shape == (1, 2, 32)
    assert host.threads == {"trunk-tiny"}


def test_calls_of_several_threads_queue_for_one_model_thread(trunk: Trunk) -> None:
    host = Slow(trunk, name="tiny")
    host.may_go_on.set()
    hidden = [random_hidden(1, 3, seed) for seed in range(6)]
    expected = [reference(trunk, hidden_BTH) for hidden_BTH in hidden]
    host.threads.clear()
    outputs: dict[int, torch.Tensor] = {}
    with GRPCComputeServer(host, port=0) as server, Client(server.address) as client:

        def call(index: int) -> None:
            outputs[index] = client.compute(hidden[index])

        threads = [threading.Thread(target=call, args=(index,)) for index in range(len(hidden))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(outputs[index], expected[index]) for index in range(len(hidden)))
    assert host.threads == {"trunk-tiny"}


def test_a_crop_of_zero_ends_recording_only(trunk: Trunk) -> None:
    async def run() -> torch.Tensor | None:
        host = HostedTrunk(trunk, name="tiny")
        await host.open_session("a")
        await host.run_step("a", Forward(random_hidden(1, 3)))
        await host.run_step("a", Crop(0))
        output = await host.run_step("a", Forward(random_hidden(1, 1, seed=1)))
        await host.teardown()
        return output

    expected = reference(trunk, torch.cat((random_hidden(1, 3), random_hidden(1, 1, seed=1)), 1))[:, 3:]
    output = asyncio.run(run())
    assert output is not None
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_a_stateless_call_keeps_nothing(trunk: Trunk) -> None:
    async def run() -> None:
        host = HostedTrunk(trunk, name="tiny")
        first = await host.compute(ComputeCall(random_hidden(1, 3), use_cache=True))
        second = await host.compute(ComputeCall(random_hidden(1, 3)))
        assert torch.equal(first.tensor, second.tensor)
        assert second.past_key_values is None
        await host.teardown()

    asyncio.run(run())


def test_a_session_goes_on_at_another_host_of_the_same_trunk(trunk: Trunk) -> None:
    async def run() -> torch.Tensor | None:
        first, second = HostedTrunk(trunk, name="first"), HostedTrunk(trunk, name="second")
        try:
            await first.open_session("a")
            await first.run_step("a", Forward(hidden_BTH[:, :4]))
            cache = await first.export_session("a")
            await second.open_session("b")
            await second.import_session("b", cache)
            return await second.run_step("b", Forward(hidden_BTH[:, 4:]))
        finally:
            await first.teardown()
            await second.teardown()

    hidden_BTH = random_hidden(2, 6)
    output_BTH = asyncio.run(run())
    assert output_BTH is not None
    torch.testing.assert_close(output_BTH, reference(trunk, hidden_BTH)[:, 4:], rtol=0, atol=1e-5)


def test_a_cache_of_other_layers_is_not_imported(trunk: Trunk) -> None:
    async def run() -> None:
        host = HostedTrunk(trunk, name="tiny")
        await host.open_session("a")
        try:
            await host.import_session("a", KVEntries((KVEntry(7, "attention", {}),), 3))
        finally:
            await host.teardown()

    with pytest.raises(InvalidRequestError, match="not those of this trunk"):
        asyncio.run(run())
