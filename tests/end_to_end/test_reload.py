"""A model that is reloaded under clients that generate: no session is lost, and every token is the unsplit model's."""

import threading
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria

from splitlearn import SplitModelForCausalLM
from splitlearn.remote import RemoteTrunk
from splitlearn_comm import GRPCComputeClient
from splitlearn_comm.testing import eventually
from splitlearn_core import SplitModel
from splitlearn_core.builtin import builtin_directory
from splitlearn_manager import ModelServer, ModelSpec
from splitlearn_manager.control import ControlClient

torch.set_num_threads(1)

NEW_TOKENS = 24
PROMPT_TOKENS = 8
PATIENCE_S = 120.0


class HalfWay(StoppingCriteria):
    """Meets the others half way, and stays there until it may go on; never stops."""

    def __init__(self, meeting: threading.Barrier, may_go_on: threading.Event) -> None:
        self._meeting = meeting
        self._may_go_on = may_go_on

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if input_ids.shape[1] == PROMPT_TOKENS + NEW_TOKENS // 2:
            self._meeting.wait(PATIENCE_S)
            assert self._may_go_on.wait(PATIENCE_S)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def prompt(index: int) -> torch.Tensor:
    return torch.arange(3 + index, 3 + index + PROMPT_TOKENS).view(1, -1)


def generated(model: PreTrainedModel, index: int, criteria: StoppingCriteria | None = None) -> torch.Tensor:
    output = model.generate(
        prompt(index), max_new_tokens=NEW_TOKENS, do_sample=False, stopping_criteria=[criteria] if criteria else None
    )
    assert isinstance(output, torch.Tensor)
    return output


class Outcome(NamedTuple):
    """How one generation ended."""

    client: int
    is_right: bool
    error: Exception | None = None


class Generators:
    """Clients that generate, each on a thread, while something is done to their server."""

    def __init__(self, clients: list[GRPCComputeClient]) -> None:
        whole = AutoModelForCausalLM.from_pretrained(builtin_directory())
        self._expected = [generated(whole, index) for index in range(len(clients))]
        self._models: list[SplitModel] = [
            SplitModelForCausalLM.from_pretrained("builtin", trunk=RemoteTrunk(client)) for client in clients
        ]
        self.outcomes: list[Outcome] = []

    def during(self, work: Any) -> None:
        """Let all be half way through a generation, then do the work. The first half of them stays there meanwhile, the
        others finish theirs and do one after the other until the work is done; then all come to their end."""
        count = len(self._models)
        meeting, is_done, at_once = threading.Barrier(count + 1), threading.Event(), threading.Event()
        at_once.set()
        halves = [HalfWay(meeting, is_done if index < count // 2 else at_once) for index in range(count)]

        def generate(index: int) -> None:
            self._generate(index, halves[index])
            while not is_done.is_set() and self.outcomes[-1].error is None:
                self._generate(index)

        threads = [threading.Thread(target=generate, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        try:
            meeting.wait(PATIENCE_S)
            work()
        finally:
            is_done.set()
            for thread in threads:
                thread.join()

    def _generate(self, index: int, criteria: StoppingCriteria | None = None) -> None:
        try:
            is_right = torch.equal(generated(self._models[index], index, criteria), self._expected[index])
            self.outcomes.append(Outcome(index, is_right))
        except Exception as error:
            self.outcomes.append(Outcome(index, False, error))


def reloads(num_clients: int, num_reloads: int) -> list[Outcome]:
    """Reload a model so often under so many live generations; returns how all of them ended."""
    spec = ModelSpec(name="builtin", num_threads=1)
    with ModelServer([spec], port=0) as server, ExitStack() as stack:
        control = stack.enter_context(ControlClient(server.address))
        clients = [stack.enter_context(GRPCComputeClient(server.address, model="builtin")) for _ in range(num_clients)]
        generators = Generators(clients)
        for version in range(2, num_reloads + 2):
            generators.during(lambda: control.load_model("builtin", {"reload": True}))
            eventually(lambda: [m.version for m in control.describe().models] == [str(version)])  # noqa: B023
        (model,) = control.describe().models
        assert (model.state, model.num_sessions) == ("READY", 0)
        # Each session came to its end where it had begun: none had to be rebuilt from what its client had sent.
        assert [client.statistics().failovers for client in clients] == [0] * num_clients
        return generators.outcomes


@pytest.mark.slow
def test_a_reload_under_four_generations() -> None:
    outcomes = reloads(4, 1)
    assert [outcome for outcome in outcomes if not outcome.is_right] == []
    assert {outcome.client for outcome in outcomes} == set(range(4))
    assert len(outcomes) > 4


@pytest.mark.faults
def test_five_reloads_under_sixteen_generations(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = reloads(16, 5)
    lost = [outcome for outcome in outcomes if outcome.error is not None]
    wrong = [outcome for outcome in outcomes if not outcome.is_right and outcome.error is None]
    with capsys.disabled():
        print(
            f"\n5 reloads under 16 live generations: {len(lost)} lost, {len(wrong)} with wrong tokens, "
            f"of {len(outcomes)} (mark: 0 and 0)"
        )
    assert (lost, wrong) == ([], [])
    assert len(outcomes) >= 80
