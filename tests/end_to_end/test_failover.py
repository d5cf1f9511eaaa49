"""Generation that loses its server, or is asked to leave it: the tokens stay those of the unsplit model."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria

from splitlearn import SplitModelForCausalLM
from splitlearn_comm import AddressBook
from splitlearn_core import SplitModel
from splitlearn_core.builtin import builtin_directory
from splitlearn_manager import ManagedServer
from tests.support.trunk_process import TrunkProcess

torch.set_num_threads(1)

NEW_TOKENS = 40
PROMPT = torch.arange(3, 15).view(1, -1)


class At(StoppingCriteria):
    """Does something once, before a certain token; never stops."""

    def __init__(self, num_tokens: int, action: Callable[[], object]) -> None:
        self._num_tokens = num_tokens
        self._action = action

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if input_ids.shape[1] == PROMPT.shape[1] + self._num_tokens:
            self._action()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def generated(model: PreTrainedModel, at: StoppingCriteria | None = None) -> torch.Tensor:
    criteria = None if at is None else [at]
    output = model.generate(PROMPT, max_new_tokens=NEW_TOKENS, do_sample=False, stopping_criteria=criteria)
    assert isinstance(output, torch.Tensor)
    return output


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return generated(AutoModelForCausalLM.from_pretrained(builtin_directory()))


def loses_its_server(addresses: dict[str, TrunkProcess], seed: int) -> tuple[torch.Tensor, str]:
    """Generate with two servers, the first of which is killed at some moment; returns the tokens and who is dead."""
    chance = random.Random(seed)
    first = next(iter(addresses))
    model: SplitModel = SplitModelForCausalLM.from_pretrained(
        "builtin", trunk=AddressBook(list(addresses), in_order=True)
    )
    # Now and then in the middle of a step, which takes a few milliseconds.
    killer = threading.Timer(chance.choice([0.0, 0.001, 0.003, 0.005]), addresses[first].kill)
    output = generated(model, At(chance.randrange(1, NEW_TOKENS), killer.start))
    killer.join()
    return output, first


def kills(count: int, expected: torch.Tensor) -> None:
    """Kill a server in the middle of a generation, so many times; each dead one is replaced."""
    addresses: dict[str, TrunkProcess] = {}
    try:
        for seed in range(count):
            while len(addresses) < 2:
                process = TrunkProcess()
                addresses[process.start("builtin")] = process
            output, dead = loses_its_server(addresses, seed)
            assert torch.equal(output, expected), f"other tokens with seed {seed}"
            addresses.pop(dead).close()
    finally:
        for process in addresses.values():
            process.close()


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_a_generation(expected: torch.Tensor) -> None:
    kills(2, expected)


@pytest.mark.faults
def test_fifty_servers_killed_in_the_middle_of_a_generation(expected: torch.Tensor) -> None:
    kills(50, expected)


@pytest.mark.slow
def test_a_drain_in_the_middle_of_eight_generations(expected: torch.Tensor) -> None:
    """Every session moves with its state: none is lost, and no position is computed again."""
    first, second = ManagedServer("builtin", port=0), ManagedServer("builtin", port=0)
    first.start(block=False)
    with second:
        models = [
            SplitModelForCausalLM.from_pretrained(
                "builtin", trunk=AddressBook([first.address, second.address], in_order=True)
            )
            for _ in range(8)
        ]
        half_way, may_go_on = threading.Barrier(9), threading.Event()
        outputs: dict[int, torch.Tensor] = {}

        def generate(index: int) -> None:
            pause = At(NEW_TOKENS // 2, lambda: (half_way.wait(), may_go_on.wait()))
            outputs[index] = generated(models[index], pause)

        threads = [threading.Thread(target=generate, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        half_way.wait()
        steps_before = first.statistics().steps
        stopping = threading.Thread(target=first.stop)
        stopping.start()
        may_go_on.set()
        for thread in [*threads, stopping]:
            thread.join()
        assert all(torch.equal(outputs[index], expected) for index in range(8))
        steps = first.statistics().steps + second.statistics().steps
        assert steps_before == 8 * (NEW_TOKENS // 2)
        assert steps == 8 * NEW_TOKENS, "a step was done twice"
