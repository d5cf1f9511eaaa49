"""Bottom, Trunk and Top by hand: what they return and what they refuse."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from splitlearn_core import (
    Bottom,
    HiddenOutput,
    LogitsOutput,
    PartInputError,
    SplitPointError,
    SplitResult,
    Top,
    Trunk,
    UnsupportedModelError,
    load_client_model,
    load_split_model,
    split_model,
)
from tests.support.families import padded_prompt, tiny_split

IDS = padded_prompt(100)["input_ids"]


@pytest.fixture(scope="module")
def parts() -> SplitResult:
    return split_model(tiny_split("gpt2").whole, (2, 4))


def test_without_a_cache_plain_tensors_come_back(parts: SplitResult) -> None:
    hidden = parts.bottom(IDS)
    logits = parts.top(parts.trunk(hidden))
    assert hidden.shape == (2, 9, parts.trunk.hidden_size)
    assert logits.shape[:2] == (2, 9)


def test_with_a_cache_named_tuples_come_back(parts: SplitResult) -> None:
    bottom, trunk = parts.bottom(IDS, use_cache=True), parts.trunk(parts.bottom(IDS), use_cache=True)
    top = parts.top(trunk.hidden_states, use_cache=True)
    assert isinstance(bottom, HiddenOutput)
    assert isinstance(trunk, HiddenOutput)
    assert isinstance(top, LogitsOutput)
    assert bottom.past_key_values.position == top.past_key_values.position == 9


def test_the_parts_share_the_weights_of_the_model() -> None:
    whole = tiny_split("gpt2").whole
    own = dict(whole.named_parameters())
    for part in split_model(whole, (2, 4)):
        assert all(own[name] is parameter for name, parameter in part.named_parameters())


def test_the_model_that_was_split_is_unchanged() -> None:
    whole = tiny_split("gpt2").whole
    before = whole(IDS).logits
    split_model(whole, (2, 4))
    assert torch.equal(before, whole(IDS).logits)


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        (torch.zeros(1, 3, 5), r"got \[1, 3, 5\]"),
        (torch.zeros(3, 48), "got .3, 48."),
        (torch.zeros(1, 3, 48, dtype=torch.int64), "token ids go into the Bottom part"),
        (torch.zeros(1, 3, 48, dtype=torch.float64), r"\.to\(torch\.float32\)"),
        ([[1.0]], "got list"),
    ],
)
def test_a_trunk_refuses_what_cannot_be_hidden_states(parts: SplitResult, hidden: Any, said: str) -> None:
    if isinstance(hidden, torch.Tensor) and hidden.shape[-1] == 48:
        hidden = hidden.new_zeros(*hidden.shape[:-1], parts.trunk.hidden_size)
        said = said.replace("48", str(parts.trunk.hidden_size))
    with pytest.raises(PartInputError, match=said):
        parts.trunk(hidden)


@pytest.mark.parametrize("ids", [torch.zeros(1, 3), torch.zeros(3, dtype=torch.long)])
def test_a_bottom_refuses_what_are_no_token_ids(parts: SplitResult, ids: torch.Tensor) -> None:
    with pytest.raises(PartInputError, match="token ids"):
        parts.bottom(ids)


def test_a_cache_of_another_part_is_refused(parts: SplitResult) -> None:
    _, cache = parts.bottom(IDS, use_cache=True)
    with pytest.raises(PartInputError, match="what this part returned"):
        parts.trunk(parts.bottom(IDS), past_key_values=cache)


@pytest.mark.parametrize("points", [(0, 2), (2, 2), (3, 2), (2, 6), (2,), (1, 2, 3), ("1", 2), (True, 3)])
def test_cut_points_out_of_order_or_range_are_refused(points: Any) -> None:
    with pytest.raises(SplitPointError, match="0 < a < b < 6"):
        split_model(tiny_split("gpt2").whole, points)


def test_a_part_cannot_be_split_again(parts: SplitResult) -> None:
    with pytest.raises(UnsupportedModelError, match="expected a whole"):
        split_model(parts.trunk, (2, 4))


@pytest.mark.parametrize("a", range(1, 5))
def test_every_cut_of_a_model_is_the_model(a: int) -> None:
    whole = tiny_split("gpt2").whole
    expected = whole(IDS).logits
    for b in range(a + 1, 6):
        bottom, trunk, top = split_model(whole, (a, b))
        assert torch.equal(top(trunk(bottom(IDS))), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_parts_and_the_client_model_may_be_copied_and_pickled(duplicate: Callable[[Any], Any]) -> None:
    ids = torch.arange(9).unsqueeze(0)
    parts = load_split_model()
    bottom, trunk, top = (duplicate(part) for part in parts)
    assert [type(part).__mro__[1] for part in (bottom, trunk, top)] == [Bottom, Trunk, Top]
    logits = parts.top(parts.trunk(parts.bottom(ids)))
    assert torch.equal(top(trunk(bottom(ids))), logits)
    assert torch.equal(duplicate(load_client_model())(ids).logits, logits)
