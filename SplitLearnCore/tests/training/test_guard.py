"""Gradients that make no sense harm nobody: neither side steps, and everybody learns where they came from."""

import copy
import logging
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from splitlearn_core import TrainingError
from splitlearn_core.training.guard import BOTTOM_EXIT, TOP_ENTRY, Guard, GuardConfig, Reaction
from tests.support.families import tiny_split
from tests.support.training import batches, whole_weights


def good(guard: Guard, norm: float = 1.0) -> None:
    guard.see(TOP_ENTRY, norm)
    assert guard.find(is_finite=True) is None


def test_what_is_finite_passes() -> None:
    guard = Guard(GuardConfig())
    for norm in (1.0, 1e9, 0.0):
        good(guard, norm)
    assert guard.counts == {}


def test_it_says_where_gradients_stopped_being_finite() -> None:
    guard = Guard(GuardConfig())
    guard.see(TOP_ENTRY, 1.0)
    guard.see(BOTTOM_EXIT, math.nan)
    guard.see(BOTTOM_EXIT, 2.0)  # another micro-batch does not make the first one well
    finding = guard.find(is_finite=False)
    assert finding is not None
    assert finding.sentence == "NaN or infinity behind the Bottom"
    assert finding.reaction is Reaction.SKIP
    assert guard.counts == {"nonfinite": 1}


def test_what_a_scaler_threw_away_is_not_held_against_the_next() -> None:
    guard = Guard(GuardConfig())
    guard.see(TOP_ENTRY, math.inf)
    good(guard)


def test_too_many_in_a_row_are_an_error() -> None:
    guard = Guard(GuardConfig(max_in_a_row=2))
    for _ in range(3):
        assert guard.find(is_finite=False)
        assert guard.find(is_finite=False)
        good(guard)
    assert guard.find(is_finite=False)
    assert guard.find(is_finite=False)
    with pytest.raises(TrainingError, match=r"3 updates in a row made no sense.*none of them was done.*lower the rate"):
        guard.find(is_finite=False)


def test_a_norm_far_above_those_before() -> None:
    guard = Guard(GuardConfig(on_spike="lower_rate", window=10, spike_factor=5.0, lower_rate_by=0.25))
    guard.see(TOP_ENTRY, 100.0)
    assert guard.find(is_finite=True) is None  # nobody knows yet what is usual
    for _ in range(10):
        good(guard)
    guard.see(TOP_ENTRY, 4.9)
    assert guard.find(is_finite=True) is None
    guard.see(TOP_ENTRY, 5.1)
    finding = guard.find(is_finite=True)
    assert finding is not None
    assert finding.sentence == "norm 5.1 before the Top, the median of the 10 before is 1"
    assert guard.rate_factor == 0.25
    guard.see(TOP_ENTRY, 5.1)
    assert guard.find(is_finite=True), "what was left out must not become usual"


def test_it_goes_on_as_it_was() -> None:
    guard = Guard(GuardConfig(on_nonfinite="lower_rate", on_spike="skip", window=5))
    for _ in range(5):
        good(guard)
    guard.find(is_finite=False)
    again = Guard(guard.config)
    again.restore(guard.state())
    assert repr(again) == repr(guard)
    assert again.state() == guard.state()
    again.see(TOP_ENTRY, 11.0)
    assert again.find(is_finite=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_nonfinite": "ignore"},
        {"on_spike": "nothing"},
        {"spike_factor": 1.0},
        {"window": 2},
        {"lower_rate_by": 1.5},
        {"max_in_a_row": -1},
    ],
)
def test_a_value_that_cannot_be(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(TrainingError, match=f"{name} is .*; got {value!r}"):
        GuardConfig(**wrong)


def learn(run: Any, bad: set[int], *, accumulate: int = 1, leave_out: bool = False) -> None:
    """Train on micro-batches; the loss of the bad ones is NaN, or they and all of their update are left out."""
    run.model.train()
    given = batches(12)
    for first in range(0, len(given), accumulate):
        numbers = range(first, first + accumulate)
        if leave_out and bad & set(numbers):
            continue
        for number in numbers:
            loss = run.model(**given[number]).loss
            (loss * math.nan if number in bad else loss).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()


def begin(config: GuardConfig | None = None, **options: Any) -> Any:
    torch.manual_seed(3)
    split = tiny_split("llama")
    lora = LoraConfig(r=2, target_modules="all-linear")
    return split.client.start_training(**{"lora": lora, "lr": 1e-2, "guard": config, **options})


def assert_same_weights(one: Any, other: Any) -> None:
    expected, got = whole_weights(one), whole_weights(other)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("train", [("bottom", "trunk", "top"), ("trunk",), ("top",), ("bottom", "top")])
def test_an_update_with_nan_in_it_is_not_done(
    train: tuple[str, ...], accumulate: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {4, 7, 10}  # the first and the second of two micro-batches
    run, without = begin(train=train), begin(train=train)
    with caplog.at_level(logging.WARNING):
        learn(run, bad, accumulate=accumulate)
    learn(without, bad, accumulate=accumulate, leave_out=True)
    assert_same_weights(without, run)
    assert run.guard.counts == {"nonfinite": 3}
    assert run.update_id == without.update_id
    assert caplog.text.count("an update is left out (skip): NaN or infinity") == 3


def test_hidden_states_that_are_not_finite_are_not_sent_either() -> None:
    run = begin()
    before = {name: tensor.clone() for name, tensor in whole_weights(run).items()}
    run.model.train()
    embedded = run.model.get_input_embeddings()(batches(1)[0]["input_ids"]).detach()
    embedded[0, 3, 1] = math.inf
    loss = run.model(inputs_embeds=embedded, labels=batches(1)[0]["labels"]).loss
    assert loss.isnan()
    loss.backward()
    run.optimizer.step()
    assert run.guard.counts == {"nonfinite": 1}
    assert all(torch.equal(before[name], tensor) for name, tensor in whole_weights(run).items())


def test_a_loss_that_is_nan_is_named(caplog: pytest.LogCaptureFixture) -> None:
    run = begin()
    run.model.train()
    with torch.no_grad():
        run.model.get_output_embeddings().weight[0, 0] = math.nan
    batch = batches(1)[0]
    with caplog.at_level(logging.WARNING):
        run.model(**batch).loss.backward()
        run.optimizer.step()
    assert "an update is left out (skip): NaN or infinity in the loss;" in caplog.text
    run.optimizer.zero_grad()
    with torch.no_grad():
        assert run.model(**batch).loss.isnan()  # an evaluation is no part of an update
    assert run.guard._norms == {}


def test_rates_fall_on_both_sides_and_stay_low() -> None:
    run, slow = begin(GuardConfig(on_nonfinite="lower_rate"), optimizer="sgd"), begin(optimizer="sgd", lr=5e-3)
    learn(run, {0})
    learn(slow, {0})
    assert_same_weights(slow, run)
    assert run.optimizer.param_groups[0]["lr"] == 1e-2, "a schedule goes on from the rate that it set"
    assert run.guard.rate_factor == 0.5


def test_it_stops_where_it_is_told_to() -> None:
    run = begin(GuardConfig(on_nonfinite="stop"))
    before = {name: tensor.clone() for name, tensor in whole_weights(run).items()}
    with pytest.raises(TrainingError, match="NaN or infinity before the Top; nothing was stepped, on either side"):
        learn(run, {0})
    assert all(torch.equal(before[name], tensor) for name, tensor in whole_weights(run).items())
    assert run.update_id == 0


def test_a_loss_that_is_nan_from_the_first_step() -> None:
    run = begin()
    with pytest.raises(TrainingError, match="11 updates in a row made no sense, the last for NaN or infinity before"):
        learn(run, set(range(12)))
    run.optimizer.zero_grad()
    learn(run, set())
    assert run.update_id == 12


def test_a_checkpoint_keeps_it(tmp_path: Any) -> None:
    run = begin(GuardConfig(on_nonfinite="lower_rate"))
    learn(run, {3})
    run.save_checkpoint("lower", tmp_path)
    again = begin(GuardConfig(on_nonfinite="lower_rate"))
    again.resume("lower", tmp_path)
    assert again.guard.rate_factor == 0.5
    learn(run, set())
    learn(again, set())
    assert_same_weights(run, again)
    assert copy.deepcopy(run.guard.state()) == again.guard.state()
