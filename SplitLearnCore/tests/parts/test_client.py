"""The client model beside `generate`: forwards by hand, names, refusals, and who frees the session."""

import copy
import gc
import warnings
from pathlib import Path

import pytest
import torch

from splitlearn_core import LocalTrunk, PartInputError, SplitModel, SplitPoints, TrunkSession, UnsupportedOptionError
from tests.support.families import padded_prompt, tiny_split


class CountingTrunk(LocalTrunk):
    """A local trunk that knows how many of its sessions are open and what masks it was sent."""

    def __init__(self, port: LocalTrunk) -> None:
        super().__init__(port.trunk)
        self.open: list[TrunkSession] = []
        self.masks: list[torch.Tensor | None] = []

    def compute(self, hidden_BTH, attention_mask=None, position_ids=None, *, training=False):  # type: ignore[no-untyped-def]
        self.masks.append(attention_mask)
        return super().compute(hidden_BTH, attention_mask, position_ids, training=training)

    def open_session(self):  # type: ignore[no-untyped-def]
        session = super().open_session()
        self.open.append(session)
        session.close = lambda: self.open.remove(session) if session in self.open else None  # type: ignore[method-assign]
        return session


def counting_client() -> tuple[SplitModel, CountingTrunk]:
    client = tiny_split("gpt2").client
    assert isinstance(client.trunk, LocalTrunk)
    client.trunk = trunk = CountingTrunk(client.trunk)
    return client, trunk


def test_every_parameter_keeps_its_name() -> None:
    split = tiny_split("qwen2")
    names = set(dict(split.whole.named_parameters()))
    client, trunk = set(dict(split.client.named_parameters())), set(dict(split.trunk.named_parameters()))
    assert client < names
    assert trunk < names
    assert client | trunk == names
    assert not any(".layers.2." in name or ".layers.3." in name for name in client)


def test_it_is_an_instance_of_the_architectures_class() -> None:
    split = tiny_split("llama")
    assert isinstance(split.client, type(split.whole))
    assert type(split.client).__name__ == "LlamaForCausalLM"
    assert split.client.loss_type == split.whole.loss_type


def test_cached_forwards_by_hand_equal_one_forward() -> None:
    split = tiny_split("llama")
    ids = padded_prompt(100)["input_ids"]
    with torch.no_grad():
        whole = split.whole(ids, use_cache=False).logits
        first = split.client(ids[:, :5], use_cache=True)
        second = split.client(ids[:, 5:], past_key_values=first.past_key_values)
    both = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(both, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))


def test_generate_frees_its_session() -> None:
    client, trunk = counting_client()
    client.generate(**padded_prompt(100), max_new_tokens=3)
    assert trunk.open == []


def test_generate_that_fails_frees_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    client, trunk = counting_client()

    def fail(*args: object) -> None:
        assert len(trunk.open) == 1
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        client.generate(**padded_prompt(100), max_new_tokens=3, prefix_allowed_tokens_fn=fail)
    assert trunk.open == []


def test_a_cache_that_nobody_holds_frees_its_session() -> None:
    client, trunk = counting_client()
    client(**padded_prompt(100), use_cache=True)
    gc.collect()
    assert trunk.open == []


def test_a_returned_cache_keeps_its_session_until_it_is_closed() -> None:
    client, trunk = counting_client()
    output = client.generate(**padded_prompt(100), max_new_tokens=3, return_dict_in_generate=True)
    assert len(trunk.open) == 1
    output.past_key_values.close()
    output.past_key_values.close()
    assert trunk.open == []


def test_a_mask_without_padding_is_not_sent() -> None:
    client, trunk = counting_client()
    prompt = padded_prompt(100)
    client(**prompt, use_cache=False)
    client(prompt["input_ids"], attention_mask=torch.ones_like(prompt["input_ids"]), use_cache=False)
    assert trunk.masks[0] is prompt["attention_mask"]
    assert trunk.masks[1] is None


def test_a_training_forward_opens_no_session() -> None:
    client, trunk = counting_client()
    client.train()
    client(**padded_prompt(100))
    assert trunk.open == []
    assert trunk.trunk.training


def test_labels_of_another_shape_are_refused_before_anything_is_sent() -> None:
    split = tiny_split("llama")
    with pytest.raises(PartInputError, match=r"expected \[2, 7\], got \[2, 6\]; label what is not to be learned -100"):
        split.client(input_ids=torch.ones(2, 7, dtype=torch.long), labels=torch.ones(2, 6, dtype=torch.long))


def test_a_sequence_longer_than_the_maximum_is_refused() -> None:
    client, _ = counting_client()
    limit = client.config.max_position_embeddings
    with pytest.raises(PartInputError, match=rf"at most {limit} tokens; got {limit + 1}"):
        client(torch.ones(1, limit + 1, dtype=torch.long))


def test_a_generation_that_may_become_too_long_is_warned_of_before_its_first_token() -> None:
    client, trunk = counting_client()
    limit = client.config.max_position_embeddings
    row = torch.ones(1, limit - 2, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert client.generate(row, max_new_tokens=3, pad_token_id=0).shape[1] == limit + 1
        with pytest.raises(UserWarning, match=rf"{limit + 2} tokens long, and .* at most {limit}: .*max_new_tokens"):
            client.generate(row, max_new_tokens=4, pad_token_id=0)
    assert len(trunk.masks) == 0
    with pytest.warns(UserWarning, match="tokens long"), pytest.raises(PartInputError):
        client.generate(row, max_new_tokens=4, pad_token_id=0)


def test_a_mask_of_four_dimensions_is_refused() -> None:
    client, _ = counting_client()
    with pytest.raises(PartInputError, match="attention_mask"):
        client(torch.ones(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 1, 3, 3))


def test_a_forward_opens_a_session_only_when_asked() -> None:
    client, trunk = counting_client()
    assert client(**padded_prompt(100)).past_key_values is None
    assert trunk.open == []
    assert client(**padded_prompt(100), use_cache=True).past_key_values.position == 9
    assert len(trunk.open) <= 1


def test_a_generation_that_was_returned_is_not_held_by_the_model() -> None:
    client, trunk = counting_client()
    client.generate(**padded_prompt(100), max_new_tokens=3, return_dict_in_generate=True)
    gc.collect()
    assert trunk.open == []


def test_dropout_of_the_trunk_follows_the_model() -> None:
    split = tiny_split("gpt2")
    for piece in (split.client, split.trunk):
        for module in piece.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
    ids = padded_prompt(100)["input_ids"]
    split.client.train()
    for use_cache in (False, True):
        assert not torch.equal(*(split.client(ids, use_cache=use_cache).logits for _ in range(2)))
    split.client.eval()
    for use_cache in (True, False):
        assert torch.equal(split.client(ids, use_cache=use_cache).logits, split.whole(ids).logits)


def test_what_the_architecture_takes_by_keyword_reaches_it() -> None:
    split = tiny_split("llama")
    ids = padded_prompt(100)["input_ids"]
    options = {"labels": ids, "num_items_in_batch": 1000}
    assert torch.equal(split.client(ids, **options).loss, split.whole(ids, **options).loss)
    assert isinstance(split.client(ids, return_dict=False), tuple)


def test_a_trunk_of_another_dtype_is_converted_to() -> None:
    split = tiny_split("llama")
    ids = padded_prompt(100)["input_ids"]
    expected = split.whole(ids).logits
    # A copy: the trunk's tensors are the whole model's.
    split.client.trunk = LocalTrunk(copy.deepcopy(split.trunk).to(torch.float64))
    logits = split.client(ids).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


def test_a_reorder_that_fails_on_the_trunk_ends_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = counting_client()
    ids = padded_prompt(100)["input_ids"]
    cache = client(ids, use_cache=True).past_key_values
    monkeypatch.setattr(cache.session, "reorder", lambda indices: pytest.fail("lost"))
    with pytest.raises(pytest.fail.Exception, match="lost"):
        cache.reorder_cache(torch.tensor([1, 0]))
    with pytest.raises(PartInputError, match="start again with a new cache"):
        client(ids[:, :1], past_key_values=cache)


def test_a_crop_of_more_than_there_is_crops_both_sides_to_nothing() -> None:
    client, _ = counting_client()
    cache = client(padded_prompt(100)["input_ids"], use_cache=True).past_key_values
    cache.crop(-100)
    assert cache.position == cache.session.position == 0


def test_rows_are_counted_through_reorders() -> None:
    client, _ = counting_client()
    cache = client(padded_prompt(100)["input_ids"], use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(3)
    assert client(torch.ones(3, 1, dtype=torch.long), past_key_values=cache).logits.shape[0] == 3


def test_a_cache_of_a_model_cut_elsewhere_is_refused() -> None:
    one, other = tiny_split("gpt2").client, tiny_split("gpt2", points=SplitPoints(1, 5)).client
    cache = other(padded_prompt(100)["input_ids"], use_cache=True).past_key_values
    with pytest.raises(UnsupportedOptionError, match="must come from this split model"):
        one(torch.ones(2, 1, dtype=torch.long), past_key_values=cache)


def test_a_mask_that_is_refused_leaves_the_cache_as_it_was() -> None:
    client, _ = counting_client()
    ids = padded_prompt(100)["input_ids"]
    cache = client(ids, use_cache=True).past_key_values
    with pytest.raises(PartInputError, match="attention_mask"):
        client(ids[:, :1], past_key_values=cache, attention_mask=torch.ones(2, 1, 1, 10))
    assert client(ids[:, :1], past_key_values=cache).logits.shape == (2, 1, client.config.vocab_size)


def test_it_cannot_be_saved_as_if_it_were_whole(tmp_path: Path) -> None:
    client, _ = counting_client()
    with pytest.raises(UnsupportedOptionError, match="Bottom and Top only"):
        client.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
