"""The client model beside `generate`: forwards by hand, names, refusals, and who frees the session."""

import gc

import pytest
import torch

from splitlearn_core import LocalTrunk, PartInputError, SplitModel, TrunkSession
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


def test_a_sequence_longer_than_the_maximum_is_refused() -> None:
    client, _ = counting_client()
    limit = client.config.max_position_embeddings
    with pytest.raises(PartInputError, match=rf"at most {limit} tokens; got {limit + 1}"):
        client(torch.ones(1, limit + 1, dtype=torch.long))


def test_a_mask_of_four_dimensions_is_refused() -> None:
    client, _ = counting_client()
    with pytest.raises(PartInputError, match="attention_mask"):
        client(torch.ones(1, 3, dtype=torch.long), attention_mask=torch.ones(1, 1, 3, 3))
