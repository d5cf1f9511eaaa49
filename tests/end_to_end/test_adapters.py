"""Across the wire a client computes with what it trains, and with nothing of others."""

import asyncio
import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from splitlearn import SplitModelForCausalLM
from splitlearn.remote import RemoteTrunk
from splitlearn_comm import (
    AdapterNotFoundError,
    AddressBook,
    AsyncComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    ResourceExhaustedError,
    ServerUnavailableError,
    SessionNotFoundError,
)
from splitlearn_comm.client import ExponentialBackoff, FixedDelay
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import eventually
from splitlearn_comm.training import StartTraining
from splitlearn_core import TrainingError
from splitlearn_core.errors import TrainingLostError
from splitlearn_core.parts.port import TrunkSession
from splitlearn_core.training.seeding import seeded_dropout
from splitlearn_manager.quickstart import ManagedServer
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk
from splitlearn_manager.runtime.training_desk import TrainingLimits
from tests.support.families import Split, padded_prompt, tiny_split
from tests.support.models import save_gpt2
from tests.support.training import assert_evaluates_alike, fit

SOON = ExponentialBackoff(initial_delay=0.01, max_attempts=3)
pytestmark = pytest.mark.slow
TOKENS = {"alice": "a" * 32, "bob": "b" * 32}


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)


def server(split: Split, config: GRPCServerConfig | None = None, port: int = 0) -> GRPCComputeServer:
    host = HostedTrunk(split.trunk, name="trunk", training_limits=TrainingLimits(allow_full=True))
    return GRPCComputeServer(host, port=port, config=config or GRPCServerConfig())


@contextmanager
def across_the_wire(split: Split, num_servers: int = 1, **options: Any) -> Iterator[AddressBook]:
    """Put servers between a split model's client and its trunk."""
    local = split.client.trunk
    with ExitStack() as stack:
        servers = [stack.enter_context(server(split)) for _ in range(num_servers)]
        book = AddressBook([each.address for each in servers], **options)
        split.client.trunk = stack.enter_context(RemoteTrunk.connect(book))
        yield book
    split.client.trunk = local


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_with_an_adapter(family: str) -> None:
    split, plain = tiny_split(family), LoraConfig(r=4, target_modules="all-linear")
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), plain)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=5e-2)
    with across_the_wire(split):
        torch.manual_seed(5)
        run = split.client.start_training(lora=plain, lr=5e-2)
        for _ in range(2):
            assert fit(split.client, run.optimizer, num_steps=3) == fit(whole, optimizer, num_steps=3)
            assert_evaluates_alike(split.client, whole, split.whole)
        run.close()
        with torch.no_grad():
            expected = split.whole(**padded_prompt(90)).logits
            assert torch.allclose(split.client(**padded_prompt(90)).logits, expected, atol=1e-5)


def test_with_all_weights() -> None:
    split = tiny_split("llama")
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    expected = fit(whole, torch.optim.SGD(whole.parameters(), lr=0.5), num_steps=3)
    with across_the_wire(split):
        run = split.client.start_training(optimizer="sgd", lr=0.5)
        assert fit(split.client, run.optimizer, num_steps=3) == expected
        assert_evaluates_alike(split.client, whole, split.whole)


def test_it_is_found_at_the_one_of_several_servers_that_trains() -> None:
    split = tiny_split("llama")
    plain = LoraConfig(r=4, target_modules="all-linear")
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), plain)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=5e-2)
    fit(whole, optimizer, num_steps=2)
    with across_the_wire(split, num_servers=3, turn=0):
        torch.manual_seed(5)
        run = split.client.start_training(lora=plain, lr=5e-2)
        fit(split.client, run.optimizer, num_steps=2)
        for _ in range(3):  # whoever's turn it is
            assert_evaluates_alike(split.client, whole, split.whole)


def test_a_cache_travels_with_calls_too() -> None:
    split = tiny_split("llama")
    with across_the_wire(split) as book, Client(book) as client:
        run = split.client.start_training(lora=lora(), lr=5e-2)
        fit(split.client, run.optimizer, num_steps=3)
        adapter = run.passes.training.adapter  # type: ignore[attr-defined]
        hidden_BTH = torch.randn(1, 6, split.trunk.hidden_size)
        expected_BTH = client.compute(hidden_BTH, adapter=adapter)
        assert not torch.allclose(client.compute(hidden_BTH), expected_BTH, atol=1e-3)
        first, cache = client.compute(hidden_BTH[:, :4], use_cache=True, adapter=adapter)
        rest = client.compute(hidden_BTH[:, 4:], past_key_values=cache, adapter=adapter)
        torch.testing.assert_close(torch.cat((first, rest), 1), expected_BTH, rtol=0, atol=1e-5)


def test_sessions_with_and_without_an_adapter_go_on_side_by_side() -> None:
    split = tiny_split("llama")
    hidden_BTH = torch.randn(1, 5, split.trunk.hidden_size)

    async def at_once(address: AddressBook, names: list[str | None]) -> list[torch.Tensor]:
        async def steps(client: AsyncComputeClient, name: str | None) -> torch.Tensor:
            async with client.session(adapter=name) as session:
                return torch.cat([await session.step(hidden_BTH[:, t : t + 1]) for t in range(5)], 1)

        async with AsyncComputeClient(address) as client:
            return list(await asyncio.gather(*(steps(client, name) for name in names)))

    with across_the_wire(split) as book, Client(book) as client:
        run = split.client.start_training(lora=lora(), lr=5e-2)
        fit(split.client, run.optimizer, num_steps=3)
        adapter = run.passes.training.adapter  # type: ignore[attr-defined]
        plain_BTH, adapted_BTH = client.compute(hidden_BTH), client.compute(hidden_BTH, adapter=adapter)
        assert not torch.allclose(plain_BTH, adapted_BTH, atol=1e-3)
        for name, output_BTH in zip([None, adapter] * 3, asyncio.run(at_once(book, [None, adapter] * 3)), strict=True):
            expected_BTH = plain_BTH if name is None else adapted_BTH
            torch.testing.assert_close(output_BTH, expected_BTH, rtol=0, atol=1e-5)


def test_a_session_ends_with_the_training_that_it_computes_with() -> None:
    split = tiny_split("llama")
    hidden_BTH = torch.randn(1, 3, split.trunk.hidden_size)
    with across_the_wire(split) as book, Client(book) as client:
        run = split.client.start_training(lora=lora(), lr=5e-2)
        adapter = run.passes.training.adapter  # type: ignore[attr-defined]
        session = client.session(adapter=adapter)
        session.step(hidden_BTH)
        run.close()
        with pytest.raises(SessionNotFoundError, match="there no more: its training has ended"):
            session.step(hidden_BTH)
        with pytest.raises(AdapterNotFoundError, match="expected the name of one that it trains"):
            client.compute(hidden_BTH, adapter=adapter)


def test_nobody_computes_with_what_another_trains() -> None:
    split = tiny_split("llama")
    hidden_BTH = torch.randn(1, 3, split.trunk.hidden_size)
    with (
        server(split, GRPCServerConfig(tokens=TOKENS)) as serving,
        Client(serving.address, token=TOKENS["alice"]) as alice,
        Client(serving.address, token=TOKENS["bob"]) as bob,
        alice.session() as training,
    ):
        training.train(StartTraining(name="mine"))
        alice.compute(hidden_BTH, adapter="mine")
        refusals = []
        for name in ("mine", "ours"):
            for ask in (partial(bob.compute, hidden_BTH), bob.session):
                with pytest.raises(AdapterNotFoundError) as refused:
                    ask(adapter=name)
                refusals.append(str(refused.value).replace(name, "NAME"))
        assert len(set(refusals)) == 1
        with bob.session() as other:
            other.train(StartTraining(name="mine"))


def test_a_server_that_is_started_again_makes_an_evaluation_a_lost_training(tmp_path: Path) -> None:
    split, patient = tiny_split("llama"), FixedDelay(0.02, max_attempts=500)
    prompt = padded_prompt(90)
    local = split.client.trunk
    with ExitStack() as stack:
        first = stack.enter_context(server(split))
        split.client.trunk = stack.enter_context(RemoteTrunk.connect(first.address, retry=patient))
        run = split.client.start_training(lora=lora(), lr=5e-2)
        fit(split.client, run.optimizer, num_steps=2)
        run.save_checkpoint("last", tmp_path)
        split.client.eval()
        with torch.no_grad():
            expected_BTV = split.client(**prompt).logits
        first.stop()
        stack.enter_context(server(split, port=int(first.address.rpartition(":")[2])))
        with torch.no_grad(), pytest.raises(TrainingLostError, match=r"no adapter .*; run\.resume\(tag\) goes on"):
            split.client(**prompt)
        with pytest.raises(TrainingLostError, match=r"no adapter .*; run\.resume\(tag\) goes on"):
            split.client.generate(**prompt, max_new_tokens=2)
        run.resume("last", tmp_path)
        with torch.no_grad():
            assert torch.equal(split.client(**prompt).logits, expected_BTV)
        fit(split.client, run.optimizer, num_steps=1)
        assert run.update_id == 3
    split.client.trunk = local


def test_a_session_of_a_training_that_has_ended_says_that_it_is_lost() -> None:
    split = tiny_split("llama")
    hidden_BTH = torch.randn(2, 3, split.trunk.hidden_size)
    with across_the_wire(split):
        run = split.client.start_training(lora=lora(), lr=5e-2)
        sessions = [split.client.trunk_now.open_session() for _ in range(4)]
        for session in sessions:
            session.step(hidden_BTH)
        run.passes.training.close()  # as it ends when it is idle for too long
        steps: list[Callable[[TrunkSession], object]] = [
            lambda session: session.step(hidden_BTH),
            lambda session: session.reorder(torch.tensor([1, 0])),
            lambda session: session.crop(1),
            lambda session: session.start_recording(),
        ]
        for session, step in zip(sessions, steps, strict=True):
            with pytest.raises(TrainingLostError, match=r"its training has ended.*run\.resume\(tag\) goes on"):
                step(session)


@pytest.mark.parametrize("kind", ["calls", "a session"])
def test_a_training_that_is_evaluated_for_long_is_not_idle(kind: str) -> None:
    split = tiny_split("llama")
    local = split.client.trunk
    with (
        server(split, GRPCServerConfig(idle_session_timeout_s=1.0)) as serving,
        RemoteTrunk.connect(serving.address) as split.client.trunk,
        Client(serving.address) as other,
    ):
        run = split.client.start_training(lora=lora(), lr=5e-2)
        fit(split.client, run.optimizer, num_steps=1)
        split.client.eval()
        session = split.client.trunk_now.open_session() if kind == "a session" else None
        hidden_BTH = torch.ones(1, 1, split.trunk.hidden_size)

        def look() -> None:
            if session is None:
                split.client.trunk_now.compute(hidden_BTH)
            else:
                session.step(hidden_BTH)
                session.crop(1)

        def is_another_over() -> bool:
            look()
            return serving.statistics().sessions_expired > 0

        with other.session():  # opened after the last step of the training, so that it is over before that would be
            eventually(is_another_over)
        assert serving.statistics().sessions_expired == 1
        fit(split.client, run.optimizer, num_steps=1)
        assert run.update_id == 2
    split.client.trunk = local


def test_what_cannot_be_is_said() -> None:
    split = tiny_split("llama")
    hidden_BTH = torch.randn(1, 3, split.trunk.hidden_size)
    with server(split) as serving, Client(serving.address) as client, client.session() as training:
        training.train(StartTraining(name="mine"))
        with client.session() as second, pytest.raises(InvalidRequestError, match="an adapter 'mine' already"):
            second.train(StartTraining(name="mine"))
        with pytest.raises(InvalidRequestError, match="at most 128 characters"):
            client.compute(hidden_BTH, adapter="m" * 129)
        with pytest.raises(InvalidRequestError, match="all of them printable"):
            client.session(adapter="mi\nne")


def test_a_session_is_over_with_its_server_whatever_another_has_under_the_name() -> None:
    split = tiny_split("llama")
    hidden_BTH = torch.randn(1, 3, split.trunk.hidden_size)
    with ExitStack() as stack:
        servers = [stack.enter_context(server(split)) for _ in range(2)]
        for each in servers:
            client = stack.enter_context(Client(each.address))
            stack.enter_context(client.session()).train(StartTraining(name="mine"))
        book = AddressBook([each.address for each in servers], in_order=True)
        client = stack.enter_context(Client(book, retry=SOON))
        plain, adapted = client.session(), client.session(adapter="mine")
        for session in (plain, adapted):
            session.step(hidden_BTH)
        servers[0].stop()
        plain.step(hidden_BTH)
        with pytest.raises(ServerUnavailableError, match="in the middle of session"):
            adapted.step(hidden_BTH)


def test_what_is_published_stays_when_the_training_goes_on_and_when_it_ends() -> None:
    split, only_trunk = tiny_split("llama"), LoraConfig(r=4, target_modules=".*layers.[23].*proj")
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), only_trunk)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=5e-2)
    fit(whole, optimizer, num_steps=3)
    with across_the_wire(split, num_servers=2, turn=0) as book:
        torch.manual_seed(5)
        run = split.client.start_training(train="trunk", lora=only_trunk, lr=5e-2)
        fit(split.client, run.optimizer, num_steps=3)
        run.publish_adapter("after three")
        fit(split.client, run.optimizer, num_steps=1)
        run.close()
        with RemoteTrunk.connect(book, "after three") as split.client.trunk:
            assert_evaluates_alike(split.client, whole, split.whole)
            with pytest.raises(TrainingError, match="computes with the adapter 'after three'"):
                split.client.start_training(lora=only_trunk)
            session = split.client.trunk.open_session()
            session.step(torch.randn(1, 2, split.trunk.hidden_size))
            split.client.trunk.free_adapter("after three")
            with pytest.raises(SessionNotFoundError, match="or it was freed"):
                session.step(torch.randn(1, 2, split.trunk.hidden_size))
            with pytest.raises(AdapterNotFoundError):
                split.client.trunk.free_adapter("after three")
        with pytest.raises(AdapterNotFoundError, match="no adapter 'after three' here"):
            RemoteTrunk.connect(book, "after three")


def test_a_model_is_loaded_with_an_adapter(tmp_path: Path) -> None:
    only_trunk, base = LoraConfig(r=4, target_modules=r".*\.h\.[23]\..*c_attn"), save_gpt2(tmp_path)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(base), only_trunk)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=5e-2)
    with seeded_dropout(whole.base_model.model, 3):
        expected = fit(whole, optimizer, num_steps=3)
    with ManagedServer(str(tmp_path), port=0) as serving:
        trainee = SplitModelForCausalLM.from_pretrained(str(tmp_path), trunk=serving.address)
        torch.manual_seed(5)
        run = trainee.start_training(train="trunk", lora=only_trunk, lr=5e-2)
        with seeded_dropout(trainee, 3):
            assert fit(trainee, run.optimizer, num_steps=3) == expected
        run.publish_adapter("mine")
        run.close()
        model = SplitModelForCausalLM.from_pretrained(str(tmp_path), trunk=serving.address, adapter="mine")
        assert_evaluates_alike(model, whole, base)
        with pytest.raises(AdapterNotFoundError):
            SplitModelForCausalLM.from_pretrained(str(tmp_path), trunk=serving.address, adapter="yours")
        with pytest.raises(TypeError, match="adapter= goes with the address of a server"):
            SplitModelForCausalLM.from_pretrained(str(tmp_path), adapter="mine")


def test_what_cannot_be_published_is_said() -> None:
    split = tiny_split("llama")
    with across_the_wire(split):
        run = split.client.start_training(optimizer="sgd", lr=0.5)
        with pytest.raises(TrainingError, match="there is none to publish"):
            run.publish_adapter("all")
        run.close()
        run = split.client.start_training(train=("bottom", "top"), lora=lora())
        with pytest.raises(TrainingError, match="there is none to publish"):
            run.publish_adapter("not there")
        run.close()
        run = split.client.start_training(lora=lora())
        with pytest.raises(TrainingError, match="has a name; came none"):
            run.publish_adapter("")
        with pytest.raises(TrainingError, match="trains under the name"):
            run.publish_adapter(run.passes.training.adapter)  # type: ignore[attr-defined]
        for index in range(8):
            run.publish_adapter(f"number {index}")
        with pytest.raises(ResourceExhaustedError, match="8 adapters of this client are published here"):
            run.publish_adapter("one too many")
        run.publish_adapter("number 0")
        split.client.trunk.free_adapter("number 1")  # type: ignore[attr-defined]
        run.publish_adapter("one too many")
        run.close()
    run = split.client.start_training(lora=lora())
    with pytest.raises(TrainingError, match="save_adapter writes it into a directory"):
        run.publish_adapter("here")
