"""A cache that was exported and imported goes on as if it had stayed."""

from dataclasses import replace

import pytest
import torch

from splitlearn_core import UnsupportedModelError
from splitlearn_core.cache.entries import export_cache, import_cache, kind_of
from tests.support.families import tiny_split


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral", "deepseek_v3"])
@pytest.mark.parametrize("num_tokens", [3, 20])
def test_an_imported_cache_goes_on(family: str, num_tokens: int) -> None:
    trunk = tiny_split(family).trunk
    hidden = torch.randn(2, num_tokens + 2, trunk.hidden_size)
    with torch.no_grad():
        _, stayed = trunk(hidden[:, :num_tokens], use_cache=True)
        moved = trunk.new_cache()
        import_cache(moved, export_cache(stayed), stayed.position)
        for step in range(num_tokens, num_tokens + 2):
            expected = trunk(hidden[:, step : step + 1], past_key_values=stayed)
            assert torch.equal(trunk(hidden[:, step : step + 1], past_key_values=moved), expected)


def test_an_empty_cache_travels_too() -> None:
    trunk = tiny_split("gpt2").trunk
    moved = trunk.new_cache()
    import_cache(moved, export_cache(trunk.new_cache()), 0)
    assert moved.position == 0


def test_states_of_other_layers_are_refused() -> None:
    split = tiny_split("gpt2")
    with pytest.raises(ValueError, match=r"expected the cache of layers .*2.*got that of .*0"):
        import_cache(split.trunk.new_cache(), export_cache(split.client.new_cache()), 0)


@pytest.mark.parametrize("position", [0, 2, 9])
def test_a_state_of_another_length_than_it_says_is_refused(position: int) -> None:
    trunk = tiny_split("gpt2").trunk
    _, cache = trunk(torch.randn(1, 3, trunk.hidden_size), use_cache=True)
    with pytest.raises(ValueError, match=rf"expected a cache of {position} tokens for layer 2; got \[3\]"):
        import_cache(trunk.new_cache(), export_cache(cache), position)


def test_a_state_without_its_tensors_is_refused() -> None:
    trunk = tiny_split("gpt2").trunk
    _, cache = trunk(torch.randn(1, 3, trunk.hidden_size), use_cache=True)
    states = [replace(state, tensors={"keys": state.tensors["keys"]}) for state in export_cache(cache)]
    with pytest.raises(ValueError, match="expected keys and values"):
        import_cache(trunk.new_cache(), states, 3)


def test_a_cache_of_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="object cannot travel"):
        kind_of(object())
