"""The cache of a part counts as the whole model's would."""

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from splitlearn_core import PartInputError
from splitlearn_core.cache.part_cache import LengthLayer, PartCache
from splitlearn_core.split.tiny import tiny_config
from tests.support.families import padded_prompt, tiny_split


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("chunks", [[3], [4], [5], [3, 1, 1, 1, 2], [9, 1]])
def test_a_length_layer_has_the_mask_sizes_of_the_real_one(window: int | None, chunks: list[int]) -> None:
    config = tiny_config("gemma2")
    real = DynamicSlidingWindowLayer(sliding_window=window) if window else DynamicCache(config=config).layers[1]
    layer = LengthLayer(window)
    for num_tokens in chunks:
        assert layer.get_mask_sizes(num_tokens) == real.get_mask_sizes(num_tokens)
        real.update(torch.zeros(1, 1, num_tokens, 2), torch.zeros(1, 1, num_tokens, 2))
        layer.advance(num_tokens)
        assert layer.get_seq_length() == real.get_seq_length()
    assert layer.get_max_length() == real.get_max_length()


def test_a_foreign_layer_that_writes_is_a_mistake_of_ours() -> None:
    cache = PartCache(tiny_config("gpt2"), [2, 3])
    with pytest.raises(AssertionError, match="another part"):
        cache.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), layer_idx=0)


def test_every_own_layer_is_touched_once() -> None:
    trunk = tiny_split("gpt2").trunk
    hidden = torch.randn(3, 5, trunk.hidden_size)
    _, cache = trunk(hidden, use_cache=True)
    keys = cache.layers[2].keys
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    assert torch.equal(cache.layers[2].keys, keys[[2, 0, 1]])
    cache.crop(-2)
    assert cache.layers[2].keys.shape[-2] == cache.position == cache.get_seq_length() == 3
    cache.batch_repeat_interleave(2)
    assert cache.num_rows == cache.layers[3].keys.shape[0] == 6
    cache.batch_select_indices(torch.tensor([0, 5]))
    assert cache.layers[3].keys.shape[0] == 2
    cache.reset()
    assert cache.position == cache.get_seq_length() == 0


def test_a_forward_that_failed_half_way_ends_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    split = tiny_split("gpt2")
    hidden = torch.randn(1, 3, split.trunk.hidden_size)
    _, cache = split.trunk(hidden, use_cache=True)
    with monkeypatch.context() as patch:
        # The trunk's first layer appends the tokens, its second does not.
        patch.setattr(type(split.trunk.transformer.h[3].mlp), "forward", lambda *_: pytest.fail("half-way"))
        patch.setattr(split.trunk.transformer.h[2].mlp, "forward", lambda hidden: hidden)
        with pytest.raises(pytest.fail.Exception, match="half-way"):
            split.trunk(hidden, past_key_values=cache)
    assert cache.position == 3
    with pytest.raises(PartInputError, match="start again with a new cache"):
        split.trunk(hidden, past_key_values=cache)
    cache.reset()
    assert split.trunk(hidden, past_key_values=cache).shape == hidden.shape


def test_a_batch_of_the_prompt_goes_on_as_whole() -> None:
    split = tiny_split("gemma3_text")
    prompt = padded_prompt(100)
    assert torch.equal(
        split.whole.generate(**prompt, max_new_tokens=20), split.client.generate(**prompt, max_new_tokens=20)
    )
