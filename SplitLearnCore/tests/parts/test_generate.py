"""`generate` of a split model is `generate` of the unsplit one, token for token."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from splitlearn_core import UnsupportedOptionError
from splitlearn_core.split.support import support_rows
from tests.support.families import FAMILIES, Split, padded_prompt, swept, tiny_split

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.3},
    "beams": {"do_sample": False, "num_beams": 3},
}


def generate_both(split: Split, prompt: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = []
    for model in (split.whole, split.client):
        torch.manual_seed(7)
        outputs.append(model.generate(**prompt, max_new_tokens=12, **options))
    return outputs[0], outputs[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_unsplit_model(family: str) -> None:
    split = tiny_split(family)
    prompt = padded_prompt(split.whole.config.get_text_config().vocab_size)
    for way, options in WAYS.items():
        whole, client = generate_both(split, prompt, **options)
        assert torch.equal(whole, client), way


OTHERS = sorted({row.model_type for row in support_rows() if row.refusal is None} - set(FAMILIES))


def vocab_size(split: Split) -> int:
    return int(getattr(split.whole.config.get_text_config(), "vocab_size", 40))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", swept(OTHERS, first=3))
def test_tokens_of_all_that_is_supported_are_those_of_the_unsplit_model(model_type: str) -> None:
    split = tiny_split(model_type)
    padded = padded_prompt(vocab_size(split))
    for prompt in ({"input_ids": padded["input_ids"][1:]}, padded):
        whole, client = generate_both(split, prompt, **WAYS["greedy"])
        assert torch.equal(whole, client)


@pytest.mark.parametrize("family", ["bamba", "gpt2", "llama"])
def test_a_trunk_that_is_given_no_positions_goes_on_from_its_cache(family: str) -> None:
    trunk = tiny_split(family).trunk
    hidden_BTH = torch.randn(2, 5, trunk.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected_BTH = trunk(hidden_BTH)
        first, cache = trunk(hidden_BTH[:, :3], use_cache=True)
        then = [trunk(hidden_BTH[:, i : i + 1], past_key_values=cache) for i in (3, 4)]
    torch.testing.assert_close(torch.cat((first, *then), dim=1), expected_BTH, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2_moe"])
def test_without_a_cache_the_tokens_are_the_same(family: str) -> None:
    split = tiny_split(family)
    whole, client = generate_both(split, padded_prompt(100), use_cache=False)
    assert torch.equal(whole, client)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama"])
def test_assisted_and_prompt_lookup_decoding(family: str) -> None:
    split = tiny_split(family)
    row = {name: tensor[1:] for name, tensor in padded_prompt(100).items()}
    greedy = split.whole.generate(**row, max_new_tokens=24)
    # The assistant is a model of other weights: its guesses are often wrong, and the cache is cropped.
    assistant = tiny_split(family, num_layers=3, points=type(split.client.split_points)(1, 2))
    looked_up = split.client.generate(**row, max_new_tokens=24, prompt_lookup_num_tokens=3)
    assisted = split.client.generate(**row, max_new_tokens=24, assistant_model=assistant.whole)
    assisting = split.whole.generate(**row, max_new_tokens=24, assistant_model=assistant.client)
    for tokens in (looked_up, assisted, assisting):
        assert torch.equal(greedy, tokens)


def test_a_streamer_gets_every_token() -> None:
    class Collect(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    split, streamer = tiny_split("gpt2"), Collect()
    row = {name: tensor[1:] for name, tensor in padded_prompt(100).items()}
    tokens = split.client.generate(**row, max_new_tokens=6, streamer=streamer)
    assert streamer.tokens == [*tokens[0].tolist(), -1]


def test_a_stopping_criterion_stops() -> None:
    class AtLength(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 11)

    criteria = StoppingCriteriaList([AtLength()])
    tokens = tiny_split("gpt2").client.generate(**padded_prompt(100), max_new_tokens=50, stopping_criteria=criteria)
    assert tokens.shape[1] == 11


def test_logits_to_keep() -> None:
    split = tiny_split("llama")
    prompt = padded_prompt(100)
    with torch.no_grad():
        kept = split.client(**prompt, logits_to_keep=2).logits
        whole = split.whole(**prompt, logits_to_keep=2).logits
    assert kept.shape[1] == 2
    assert torch.equal(kept, whole)


def test_generation_goes_on_from_a_returned_cache() -> None:
    split = tiny_split("gpt2")
    row = {name: tensor[1:] for name, tensor in padded_prompt(100).items()}
    once = split.whole.generate(**row, max_new_tokens=10)
    first = split.client.generate(**row, max_new_tokens=4, return_dict_in_generate=True)
    then = split.client.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=6)
    assert torch.equal(once, then)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"cache_implementation": "static"}, "static"),
        ({"past_key_values": DynamicCache()}, "DynamicCache"),
    ],
)
def test_what_needs_the_trunks_inside_is_refused_before_the_first_token(
    options: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tiny_split("gpt2")
    monkeypatch.setattr(split.client, "forward_across", lambda inputs: pytest.fail("a forward ran"))
    with pytest.raises(UnsupportedOptionError, match=named):
        split.client.generate(**padded_prompt(100), max_new_tokens=2, return_dict_in_generate=True, **options)


Tensors = dict[str, torch.Tensor]


def gradients(model: PreTrainedModel, whole: PreTrainedModel, prompt: Tensors) -> Tensors:
    """Return the gradients that one forward of a model leaves in the weights, which are those of the whole."""
    whole.zero_grad()
    model.train()
    model(**prompt, labels=prompt["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in whole.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom"])
def test_training_across_a_local_trunk_has_the_gradients_of_the_whole(family: str) -> None:
    split = tiny_split(family)
    prompt = padded_prompt(100)
    expected = gradients(split.whole, split.whole, prompt)
    got = gradients(split.client, split.whole, prompt)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
