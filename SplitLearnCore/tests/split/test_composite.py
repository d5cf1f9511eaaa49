"""Models that also take images: the text decoder is cut, the encoder is left out."""

from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from splitlearn_core import (
    LocalTrunk,
    SplitModel,
    SplitPoints,
    Trunk,
    UnsupportedOptionError,
    load_client_model,
    load_part,
    split_model,
)
from splitlearn_core.parts.classes import architecture_of
from splitlearn_core.split.cut_copy import cut_copy
from splitlearn_core.split.layers import encoders, find_layers, num_parameters
from splitlearn_core.split.tiny import default_tiny_config, randomise, tiny_config, tiny_model
from splitlearn_core.split.trial import PartsRunner, WholeRunner, padded_batch

POINTS = SplitPoints(2, 4)


@pytest.fixture(scope="module")
def whole() -> PreTrainedModel:
    config = tiny_config("gemma3")
    return tiny_model(architecture_of(config), config)


def test_the_layers_are_the_decoders(whole: PreTrainedModel) -> None:
    assert [name for name, _ in encoders(whole)] == ["model.vision_tower"]
    assert find_layers(whole).name == "model.language_model.layers"


def test_no_part_holds_the_encoder(whole: PreTrainedModel) -> None:
    for part in split_model(whole, POINTS):
        assert not any("vision_tower" in name for name, _ in part.named_parameters())
        assert num_parameters(part) < num_parameters(whole.get_decoder())


def test_an_image_is_refused(whole: PreTrainedModel) -> None:
    client = cut_copy(SplitModel, whole, POINTS)
    client.trunk = LocalTrunk(cut_copy(Trunk, whole, POINTS))
    with pytest.raises(UnsupportedOptionError, match="takes text only"):
        client(input_ids=torch.tensor([[5, 6, 7]]), pixel_values=torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("model_type", ["gemma3", "qwen3_5"])
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"], ids=["one file", "shards"])
def test_a_composite_checkpoint_is_cut_like_the_model_that_transformers_makes_of_it(
    tmp_path: Path, model_type: str, max_shard_size: str
) -> None:
    saved = AutoModelForImageTextToText.from_config(default_tiny_config(CONFIG_MAPPING[model_type]))
    randomise(saved)
    saved.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    parts = [load_part(str(tmp_path), name, POINTS) for name in ("bottom", "trunk", "top")]
    unsplit = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt = padded_batch(128, 0, row_lengths=(9, 9)).prompt()
    with torch.no_grad():
        logits = WholeRunner(unsplit)(prompt, use_cache=False)
        assert torch.equal(PartsRunner(parts)(prompt, use_cache=False), logits)
        client = load_client_model(str(tmp_path), parts[1])
        assert torch.equal(client(input_ids=prompt.input_ids_BN).logits, unsplit(input_ids=prompt.input_ids_BN).logits)
