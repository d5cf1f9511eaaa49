"""A growing layer is a `DynamicLayer` that does not copy."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from splitlearn_core.cache.entries import export_cache
from splitlearn_core.cache.growing import MIN_ROOM, GrowingLayer, grow_in_place
from tests.support.families import tiny_split

ROWS, HEADS, SIZE = 2, 3, 4


def states(num_tokens: int, seed: int = 0, num_rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, num_rows, HEADS, num_tokens, SIZE, generator=generator)
    return keys, values


operations = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 70)),
    st.tuples(st.just("crop"), st.integers(0, 5)),
    st.tuples(st.just("reorder"), st.integers(1, 4)),
    st.tuples(st.just("reset"), st.just(0)),
)


@given(st.lists(operations, max_size=12))
def test_it_does_what_the_layer_of_transformers_does(done: list[tuple[str, int]]) -> None:
    growing, real, num_rows = GrowingLayer(), DynamicLayer(), ROWS
    for seed, (name, number) in enumerate(done):
        if name == "append":
            new = states(number, seed, num_rows)
            for ours, theirs in zip(growing.update(*new), real.update(*new), strict=True):
                assert torch.equal(ours, theirs)
        elif name == "crop" and number < real.get_seq_length():
            growing.crop(-number)
            real.crop(-number)
        elif name == "reorder" and real.get_seq_length():
            rows = torch.arange(number) % num_rows
            num_rows = number
            growing.reorder_cache(rows)
            real.reorder_cache(rows)
        elif name == "reset":
            growing.reset()
            real.reset()
            num_rows = ROWS
        assert growing.get_seq_length() == real.get_seq_length()
    if real.is_initialized:
        assert torch.equal(growing.keys, real.keys)
        assert torch.equal(growing.values, real.values)


def test_tokens_are_appended_in_place_until_the_room_is_full() -> None:
    layer = GrowingLayer()
    places = set()
    for _ in range(MIN_ROOM):
        keys, _ = layer.update(*states(1))
        places.add(keys.data_ptr())
    assert len(places) == 1
    keys, _ = layer.update(*states(1))
    assert keys.untyped_storage().nbytes() == 2 * MIN_ROOM * ROWS * HEADS * SIZE * 4


def test_a_room_that_was_left_is_not_written_to_any_more() -> None:
    layer = GrowingLayer()
    before, _ = layer.update(*states(3))
    copy = before.clone()
    layer.reorder_cache(torch.tensor([1, 0]))
    layer.crop(-1)
    layer.update(*states(1, seed=1))
    assert torch.equal(before, copy)


def test_a_cropped_token_leaves_its_place_to_the_next() -> None:
    layer = GrowingLayer()
    before, _ = layer.update(*states(3))
    layer.crop(-1)
    after, _ = layer.update(*states(1, seed=1))
    assert after.data_ptr() == before.data_ptr()
    assert torch.equal(after[:, :, :2], states(3)[0][:, :, :2])
    assert torch.equal(after[:, :, 2:], states(1, seed=1)[0])


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "deepseek_v3"])
@torch.inference_mode()
def test_a_filled_cache_goes_on_and_is_exported_alike(family: str) -> None:
    trunk = tiny_split(family).trunk
    hidden = torch.randn(2, 9, trunk.hidden_size)
    _, real = trunk(hidden[:, :5], use_cache=True)
    _, growing = trunk(hidden[:, :5], use_cache=True)
    grow_in_place(growing)
    for step in range(5, 9):
        new = hidden[:, step : step + 1]
        assert torch.equal(trunk(new, past_key_values=growing), trunk(new, past_key_values=real))
    for ours, theirs in zip(export_cache(growing), export_cache(real), strict=True):
        assert (ours.kind, ours.layer) == (theirs.kind, theirs.layer)
        assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())
