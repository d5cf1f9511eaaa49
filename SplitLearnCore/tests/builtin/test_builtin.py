"""The shipped model: what it is made of, that plain transformers loads it, and that it has learned something."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from splitlearn_core.builtin import BUILTIN_MODEL_ID, builtin_directory

UNSEEN = '''\
"""Counts how often each word of a text occurs."""

import re
from collections import Counter


class WordCounter:
    """Counts words, upper and lower case alike."""

    def __init__(self, minimum=1):
        self.minimum = minimum
        self._counts = Counter()

    def add(self, text):
        for match in re.finditer(r"[a-z]+", text.lower()):
            self._counts[match.group()] += 1

    def most_common(self, n=None):
        if n is not None and n < 0:
            raise ValueError("n must be >= 0")
        return [(word, count) for word, count in self._counts.most_common(n) if count >= self.minimum]


def main():
    import sys

    counter = WordCounter()
    for filename in sys.argv[1:]:
        with open(filename, encoding="utf-8") as f:
            counter.add(f.read())
    for word, count in counter.most_common(10):
        print(word, count)


if __name__ == "__main__":
    main()
'''
"""Written for this test, so that no library of any interpreter holds it."""

ODD_TEXTS = [
    "def f(x):\n    return x\n",
    "\ttabs\r\nand\rreturns\r\n\r\n",
    "  spaces before , punctuation .  And after ! don't  ",
    "ünïcode, 日本語, עברית, 🙂🏽, a\u0301 is not á",
    "control \x00\x07\x1b[0m, no-break\u00a0space, \u2028 separator, \ufeff",
    "\n\n\n        \n",
    "",
]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return AutoModelForCausalLM.from_pretrained(builtin_directory()).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(builtin_directory())


def bits(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    ids_1T = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.inference_mode():
        logits_TV = model(ids_1T[:, :-1]).logits[0]
    return functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="sum").item() / math.log(2)


def test_is_small_enough_to_ship_and_stored_in_half_precision() -> None:
    weights = builtin_directory() / "model.safetensors"
    assert weights.stat().st_size < 12_000_000
    with safe_open(weights, "pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    assert dtypes == {"F16"}


def test_is_an_eight_layer_gpt2_that_loads_in_float32(model: GPT2LMHeadModel) -> None:
    assert isinstance(model, GPT2LMHeadModel)
    assert model.config.n_layer == 8
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.transformer.wte.weight


def test_its_name_is_no_path() -> None:
    assert BUILTIN_MODEL_ID == "builtin"
    assert builtin_directory().is_dir()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_configurations_name_no_place_on_a_machine(name: str) -> None:
    text = (builtin_directory() / name).read_text()
    assert "/" not in text
    assert "_name_or_path" not in json.loads(text)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_tokenizer_gives_every_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_gives_every_character_back(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_agree(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for holder in (tokenizer, model.config, model.generation_config):
        assert holder.bos_token_id == holder.eos_token_id == holder.pad_token_id == expected


def test_predicts_source_text_it_has_not_seen(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    # 1.31 when it was made; fresh weights of the same architecture need 3.67.
    assert bits(model, tokenizer, UNSEEN) / len(UNSEEN) < 1.6


@pytest.mark.parametrize("prompt", ["class ParseError(Exception):\n", "for name in sorted(names):\n"])
def test_continues_a_prompt_into_python(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompt: str
) -> None:
    ids = tokenizer(prompt, return_tensors="pt")
    generated = model.generate(**ids, max_new_tokens=60, do_sample=False)
    text = tokenizer.decode(generated[0], skip_special_tokens=True)
    assert text.startswith(prompt)
    assert parses_but_for_its_end(text)


def parses_but_for_its_end(text: str) -> bool:
    """Whether at least one line after the first parses, and no more than a third of the lines must go for it."""
    lines = text.splitlines(keepends=True)
    for kept in range(len(lines), max(1, len(lines) * 2 // 3), -1):
        try:
            ast.parse("".join(lines[:kept]))
        except SyntaxError:
            continue
        return True
    return False


def test_card_and_licence_are_shipped() -> None:
    card = (builtin_directory() / "README.md").read_text()
    assert "bits per byte" in card
    assert "PSF License" in card
    assert "{" not in card
    assert not any(str(Path(place)) in card for place in (Path.home(), Path.cwd()))
