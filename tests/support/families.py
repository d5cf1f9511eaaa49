"""The families that must pass everything, and small split models of them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

from splitlearn_core import LocalTrunk, SplitModel, SplitPoints, Trunk
from splitlearn_core.parts.classes import causal_classes
from splitlearn_core.split.cut_copy import cut_copy
from splitlearn_core.split.tiny import tiny_config, tiny_model

FAMILIES = (
    "gpt2", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "opt", "bloom",
    "falcon", "gpt_neo", "gpt_neox", "gptj", "mixtral", "qwen2_moe", "qwen3_moe", "olmo2", "stablelm", "starcoder2",
    "cohere", "granite", "smollm3", "deepseek_v3", "mpt", "glm4",
)  # fmt: skip

POINTS = SplitPoints(2, 4)


def swept(model_types: Iterable[str], first: int = 0) -> list[Any]:
    """Parameters for a test of all model types: every tenth in each run of the suite, the others in `make faults`.

    Args:
        model_types: what the test takes; sorted, so that a family's relatives are not in one tenth.
        first: which of the first ten the tenth begins with; tests that begin elsewhere see other types.
    """
    return [
        pytest.param(model_type, marks=[] if number % 10 == first else [pytest.mark.faults])
        for number, model_type in enumerate(sorted(model_types))
    ]


class Split(NamedTuple):
    """An unsplit model and the client model of the same weights."""

    whole: PreTrainedModel
    client: SplitModel
    trunk: Trunk


def tiny_split(model_type: str, points: SplitPoints = POINTS, num_layers: int = 6) -> Split:
    """Make a tiny random model of a family and cut it, with the trunk in this process."""
    assert model_type in CONFIG_MAPPING
    config = tiny_config(model_type, num_layers)
    # Not by the configuration: that of a text model inside another has no class of its own.
    whole = tiny_model(causal_classes(CONFIG_MAPPING[model_type])[0], config)
    # Generation must not end early by chance.
    whole.generation_config.eos_token_id = None
    whole.generation_config.pad_token_id = 0
    trunk = cut_copy(Trunk, whole, points)
    client = cut_copy(SplitModel, whole, points)
    client.trunk = LocalTrunk(trunk)
    return Split(whole, client, trunk)


def padded_prompt(vocab_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` [2, 9] of which the first row is left-padded by four."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, vocab_size, (2, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, :4] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}
