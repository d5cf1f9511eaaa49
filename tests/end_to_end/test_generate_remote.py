"""`generate` across the wire is `generate` of the unsplit model, token for token, with the trunk in another process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from splitlearn import SplitModelForCausalLM
from splitlearn_core import SplitModel
from splitlearn_core.parts.split_cache import SplitCache
from tests.support.checkpoints import load_whole, save_tiny
from tests.support.families import FAMILIES, padded_prompt
from tests.support.trunk_process import TrunkProcess

torch.set_num_threads(1)

NUM_TOKENS = 8
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 1.3},
    "beams": {"do_sample": False, "num_beams": 3},
}


class Remote(NamedTuple):
    """A model twice: unsplit here, and split with its trunk in another process."""

    directory: Path
    whole: PreTrainedModel
    split: SplitModel
    address: str


@contextmanager
def remote_model(trunks: TrunkProcess, model_type: str, directory: Path) -> Iterator[Remote]:
    save_tiny(model_type, directory)
    with trunks.serving(directory) as address:
        split = SplitModelForCausalLM.from_pretrained(str(directory), trunk=address)
        with split.trunk:
            yield Remote(directory, load_whole(directory), split, address)


def single_row() -> dict[str, torch.Tensor]:
    return {name: tensor[1:] for name, tensor in padded_prompt(100).items()}


def seeded(model: PreTrainedModel, prompt: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    # use_cache: MPT's configuration turns it off.
    torch.manual_seed(7)
    tokens: torch.Tensor = model.generate(**prompt, **{"max_new_tokens": NUM_TOKENS, "use_cache": True, **options})
    return tokens


def greedy_logits(model: PreTrainedModel, prompt: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits [steps, B, V] that a greedy generation chooses from."""
    options = {"use_cache": True, "return_dict_in_generate": True, "output_logits": True}
    output: Any = model.generate(**prompt, max_new_tokens=4, do_sample=False, **options)
    if isinstance(output.past_key_values, SplitCache):
        output.past_key_values.close()
    return torch.stack(output.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_unsplit_model(trunks: TrunkProcess, tmp_path: Path, family: str) -> None:
    with remote_model(trunks, family, tmp_path) as model:
        prompt = padded_prompt(model.whole.config.get_text_config().vocab_size)
        for way, options in WAYS.items():
            assert torch.equal(seeded(model.whole, prompt, **options), seeded(model.split, prompt, **options)), way
        logits = [greedy_logits(each, prompt) for each in (model.whole, model.split)]
        counts = trunks.statistics(model.address)
    # The tokens of so small a model would forgive much.
    assert torch.equal(*logits)
    assert counts["sessions_opened"] == len(WAYS) + 1
    assert counts["sessions_open"] == 0
    assert counts["computes"] == 0  # every token went through a session
    assert counts["refusals"] == counts["replays"] == 0


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_assisted_and_prompt_lookup_decoding(trunks: TrunkProcess, tmp_path: Path, family: str) -> None:
    # The assistant has other weights: its guesses are often wrong, and both halves of the cache are cropped.
    save_tiny(family, tmp_path / "assistant", num_layers=3, seed=1)
    assistant = load_whole(tmp_path / "assistant")
    row = single_row()
    options = {"max_new_tokens": 24, "return_dict_in_generate": True, "output_logits": True}
    with remote_model(trunks, family, tmp_path / "model") as model:
        greedy = model.whole.generate(**row, **options)
        looked_up = model.split.generate(**row, **options, prompt_lookup_num_tokens=3)
        assisted = model.split.generate(**row, **options, assistant_model=assistant)
        for output in (looked_up, assisted):
            assert torch.equal(output.sequences, greedy.sequences)
            # The tokens of so small a model would forgive a cache that was cropped on one side only.
            for got, expected in zip(output.logits, greedy.logits, strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
            output.past_key_values.close()
        assert trunks.statistics(model.address)["sessions_open"] == 0


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_without_a_cache_no_session_is_opened(trunks: TrunkProcess, tmp_path: Path, family: str) -> None:
    with remote_model(trunks, family, tmp_path) as model:
        prompt = padded_prompt(100)
        assert torch.equal(seeded(model.whole, prompt, use_cache=False), seeded(model.split, prompt, use_cache=False))
        counts = trunks.statistics(model.address)
    assert counts["sessions_opened"] == 0
    assert counts["computes"] == NUM_TOKENS


def test_several_threads_generate_at_once(trunks: TrunkProcess, tmp_path: Path) -> None:
    with remote_model(trunks, "qwen2", tmp_path) as model:
        prompts = [{"input_ids": padded_prompt(100, seed)["input_ids"]} for seed in range(4)]
        expected = [model.whole.generate(**prompt, max_new_tokens=20) for prompt in prompts]
        clients = [SplitModelForCausalLM.from_pretrained(str(tmp_path), trunk=model.address) for _ in prompts]
        with ThreadPoolExecutor(len(prompts)) as pool:
            jobs = [
                pool.submit(client.generate, **prompt, max_new_tokens=20)
                for client, prompt in zip(clients, prompts, strict=True)
            ]
            tokens = [job.result() for job in jobs]
        counts = trunks.statistics(model.address)
        for client in clients:
            client.trunk.close()
    assert all(torch.equal(got, whole) for got, whole in zip(tokens, expected, strict=True))
    assert counts["sessions_opened"] == len(prompts)
    assert counts["sessions_open"] == 0


def test_a_streamer_gets_every_token_when_it_is_made(trunks: TrunkProcess, tmp_path: Path) -> None:
    class StepsAtEachToken(BaseStreamer):
        """Asks the server at each token how many steps it has done."""

        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.steps: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()
            self.steps.append(trunks.statistics(model.address)["steps"])

        def end(self) -> None:
            pass

    with remote_model(trunks, "gpt2", tmp_path) as model:
        streamer = StepsAtEachToken()
        tokens = seeded(model.split, single_row(), max_new_tokens=4, streamer=streamer)
    assert streamer.tokens == tokens[0].tolist()
    assert streamer.steps == [0, 1, 2, 3, 4]


def test_generation_goes_on_from_a_returned_cache(trunks: TrunkProcess, tmp_path: Path) -> None:
    with remote_model(trunks, "gpt2", tmp_path) as model:
        first = model.split.generate(**single_row(), max_new_tokens=4, return_dict_in_generate=True)
        assert trunks.statistics(model.address)["sessions_open"] == 1
        then = model.split.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=6)
        assert torch.equal(then, model.whole.generate(**single_row(), max_new_tokens=10))
        first.past_key_values.close()
        counts = trunks.statistics(model.address)
    assert counts["sessions_opened"] == 1
    assert counts["sessions_open"] == 0


def test_the_cut_points_are_the_servers(trunks: TrunkProcess, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    whole = load_whole(tmp_path)
    expected = whole.generate(**single_row(), max_new_tokens=6)
    for points in [(1, 2), (1, 5), (4, 5), (3, 4)]:
        with trunks.serving(tmp_path, split_points=points) as address:
            split = SplitModelForCausalLM.from_pretrained(str(tmp_path), trunk=address)
            with split.trunk:
                assert tuple(split.split_points) == points
                assert torch.equal(split.generate(**single_row(), max_new_tokens=6), expected)


def test_a_server_in_bfloat16(trunks: TrunkProcess, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    whole = load_whole(tmp_path).to(torch.bfloat16)
    with trunks.serving(tmp_path, dtype="bfloat16") as address:
        split = SplitModelForCausalLM.from_pretrained(str(tmp_path), trunk=address, dtype=torch.bfloat16)
        with split.trunk:
            assert split.dtype == torch.bfloat16
            tokens = split.generate(**padded_prompt(100), max_new_tokens=6)
    assert torch.equal(tokens, whole.generate(**padded_prompt(100), max_new_tokens=6))
