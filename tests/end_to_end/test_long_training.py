"""Training runs as long as the marks ask for: equal to the whole model's, whatever the network loses.

`make faults` runs them whole.
"""

import copy
from random import Random

import pytest
import torch
from peft import LoraConfig, get_peft_model

from splitlearn.remote import RemoteTrunk
from splitlearn_comm import GRPCComputeServer
from splitlearn_comm.client import FixedDelay
from splitlearn_comm.testing import Direction, Drop, FaultyRelay
from splitlearn_core.training.run import TrainingRun
from splitlearn_core.training.seeding import seeded_dropout
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk
from splitlearn_manager.runtime.training_desk import TrainingLimits
from tests.support.families import Split, tiny_split
from tests.support.training import assert_same, fit, whole_weights, without_prefix

NUM_LORA_STEPS = 200
NUM_FULL_STEPS = 50
LOST = 0.11
"""Of the messages each way: a fifth of all calls."""
SOON = FixedDelay(0.02, max_attempts=50)
RATES = {"AdamW": 1e-3, "SGD": 0.05}


def served(split: Split) -> GRPCComputeServer:
    limits = TrainingLimits(allow_full=True)
    return GRPCComputeServer(HostedTrunk(split.trunk, name="trunk", training_limits=limits), port=0)


@pytest.mark.faults
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("clip", [None, 0.05], ids=["", "clipped"])
@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["", "dropout"])
def test_an_adapter(family: str, optimizer: str, clip: float | None, dropout: float) -> None:
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout)
    split = tiny_split(family)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), copy.deepcopy(lora))
    trained = [p for p in whole.parameters() if p.requires_grad]
    made = getattr(torch.optim, optimizer)(trained, lr=RATES[optimizer])
    with seeded_dropout(whole.base_model.model, 3):
        expected = fit(whole, made, clip, num_steps=NUM_LORA_STEPS)
    with served(split) as server, RemoteTrunk.connect(server.address) as split.client.trunk:
        torch.manual_seed(5)
        run = split.client.start_training(lora=lora, optimizer=optimizer, lr=RATES[optimizer])
        with seeded_dropout(split.client, 3):
            assert fit(split.client, run.optimizer, clip, num_steps=NUM_LORA_STEPS) == expected
        assert_same(run, whole, without_prefix)


@pytest.mark.faults
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("clip", [None, 1.0], ids=["", "clipped"])
def test_all_weights(family: str, optimizer: str, clip: float | None) -> None:
    split = tiny_split(family)
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    made = getattr(torch.optim, optimizer)(whole.parameters(), lr=RATES[optimizer])
    expected = fit(whole, made, clip, num_steps=NUM_FULL_STEPS)
    with served(split) as server, RemoteTrunk.connect(server.address) as split.client.trunk:
        run = split.client.start_training(optimizer=optimizer, lr=RATES[optimizer])
        assert fit(split.client, run.optimizer, clip, num_steps=NUM_FULL_STEPS) == expected
        assert_same(run, whole)


def trained(split: Split, address: str, num_steps: int) -> tuple[TrainingRun, list[float], dict[str, torch.Tensor]]:
    with RemoteTrunk.connect(address, retry=SOON) as split.client.trunk:
        torch.manual_seed(5)
        run = split.client.start_training(lora=LoraConfig(r=2, target_modules="all-linear"), lr=1e-3)
        losses = fit(split.client, run.optimizer, 0.05, num_steps=num_steps)
        return run, losses, whole_weights(run)


@pytest.mark.parametrize("num_steps", [20, pytest.param(NUM_LORA_STEPS, marks=pytest.mark.faults)])
def test_a_fifth_of_all_calls_is_lost(num_steps: int) -> None:
    """Half of them before the server acted, half behind it."""
    with served(split := tiny_split("llama")) as server:
        _, expected, weights = trained(split, server.address, num_steps)
    random, num_messages = Random(0), 10 * num_steps
    schedule = {
        (direction, number): Drop()
        for direction in Direction
        for number in range(num_messages)
        if random.random() < LOST
    }
    with served(split := tiny_split("llama")) as server, FaultyRelay(server.address, schedule) as relay:
        run, losses, got = trained(split, relay.address, num_steps)
        statistics = relay.statistics()
    assert statistics.dropped > 0.8 * LOST * (statistics.requests + statistics.replies)
    assert losses == expected
    assert run.update_id == num_steps
    assert got.keys() == weights.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in weights.items())
