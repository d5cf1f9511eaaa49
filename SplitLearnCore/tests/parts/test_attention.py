"""Which attention is chosen: every way to every choice, and that each family runs with what was chosen for it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from splitlearn_core import ModelFactory
from splitlearn_core.parts.attention import AttentionSupport, best_attention, choose_attention, look_around
from splitlearn_core.parts.classes import causal_classes
from splitlearn_core.split.support import support_rows
from splitlearn_core.split.tiny import tiny_config, tiny_model
from tests.support.families import FAMILIES, swept
from tests.support.models import save_gpt2

ALL_THERE = AttentionSupport(
    architecture="SomeModel",
    model_has_flash=True,
    model_has_sdpa=True,
    is_flash_installed=True,
    device_type="cuda",
    dtype=torch.bfloat16,
)
EAGER_ONLY = {"gemma2", "bloom", "gpt_neo", "gptj", "mpt"}
IDS = torch.arange(8).unsqueeze(0)
LOGGER = "splitlearn_core.parts.attention"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    save_gpt2(directory)
    return directory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_where_all_of_it_is_there(dtype: torch.dtype) -> None:
    choice = choose_attention(replace(ALL_THERE, dtype=dtype))
    assert (choice.name, choice.skipped) == ("flash_attention_2", {})
    assert str(choice) == "attention flash_attention_2"


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"model_has_flash": False}, "SomeModel does not support it"),
        ({"is_flash_installed": False}, "flash-attn (2.3.3 or newer) is not installed or finds no GPU"),
        ({"device_type": "cpu"}, "the device is cpu instead of cuda"),
        ({"device_type": "mps"}, "the device is mps instead of cuda"),
        ({"dtype": torch.float32}, "the dtype is float32 instead of float16 or bfloat16"),
        ({"dtype": None}, "the dtype is not known instead of float16 or bfloat16"),
    ],
)
def test_one_thing_that_lacks_is_the_one_that_is_named(lacking: dict[str, Any], said: str) -> None:
    choice = choose_attention(replace(ALL_THERE, **lacking))
    assert (choice.name, choice.skipped) == ("sdpa", {"flash_attention_2": said})
    without_sdpa = choose_attention(replace(ALL_THERE, model_has_sdpa=False, **lacking))
    assert without_sdpa.name == "eager"
    assert without_sdpa.skipped == {"flash_attention_2": said, "sdpa": "SomeModel does not support it"}
    assert str(without_sdpa) == (
        f"attention eager (not flash_attention_2: {said}; not sdpa: SomeModel does not support it)"
    )


def test_everything_in_the_way_is_named() -> None:
    nothing = replace(ALL_THERE, model_has_flash=False, is_flash_installed=False, device_type="cpu", dtype=None)
    assert choose_attention(nothing).skipped["flash_attention_2"] == (
        "SomeModel does not support it, flash-attn (2.3.3 or newer) is not installed or finds no GPU, "
        "the device is cpu instead of cuda, the dtype is not known instead of float16 or bfloat16"
    )


def test_a_model_that_names_its_kernels_gets_no_other() -> None:
    (architecture, *_) = causal_classes(CONFIG_MAPPING["granite"])
    named = type("Named", (architecture,), {"_compatible_flash_implementations": ["some/kernels"]})
    cuda = torch.device("cuda")
    assert look_around(architecture, cuda, torch.bfloat16).model_has_flash
    assert not look_around(named, cuda, torch.bfloat16).model_has_flash


def test_the_log_says_it_in_one_line(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        parts = ModelFactory.create(str(checkpoint), [2, 4])
    (record,) = (record for record in caplog.records if record.name == LOGGER)
    said = record.getMessage()
    assert said.startswith("attention sdpa (not flash_attention_2: ")
    assert "the dtype is float32" in said
    assert "the device is cpu" in said
    assert said.endswith(" of GPT2LMHeadModel")
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}


@pytest.mark.parametrize(
    "options", [{"use_flash_attention": False}, {"attn_implementation": "eager"}], ids=["not fast", "named"]
)
def test_what_the_user_says_is_not_chosen(
    checkpoint: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        parts = ModelFactory.create(str(checkpoint), [2, 4], **options)
    assert parts.trunk.config._attn_implementation == "eager"
    assert not [record for record in caplog.records if record.name == LOGGER]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_with_what_is_chosen_for_it(family: str) -> None:
    config, architecture = tiny_config(family), causal_classes(CONFIG_MAPPING[family])[0]
    chosen = best_attention(architecture, config)
    assert chosen == ("eager" if family in EAGER_ONLY else "sdpa")
    plain = tiny_model(architecture, config)(IDS).logits
    config._attn_implementation = chosen
    told = tiny_model(architecture, config)
    assert told.config._attn_implementation == chosen
    assert torch.equal(told(IDS).logits, plain)


def test_an_encoder_beside_the_decoder_keeps_its_own() -> None:
    config = tiny_config("gemma4")
    (architecture, *_) = causal_classes(CONFIG_MAPPING["gemma4"])
    config._attn_implementation = best_attention(architecture, config)
    with torch.device("meta"):
        model = architecture(config)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert model.config.audio_config._attn_implementation == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", swept(row.model_type for row in support_rows() if row.refusal is None))
def test_no_architecture_refuses_what_is_chosen_for_it(model_type: str) -> None:
    config, architecture = tiny_config(model_type), causal_classes(CONFIG_MAPPING[model_type])[0]
    config._attn_implementation = best_attention(architecture, config)
    with torch.device("meta"):
        architecture(config)
