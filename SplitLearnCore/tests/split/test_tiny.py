import pytest
import torch
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2MoeConfig

from splitlearn_core.parts.classes import architecture_of
from splitlearn_core.split.layers import decoder_config, num_decoder_layers, num_parameters
from splitlearn_core.split.tiny import shortened, tiny_config, tiny_config_like, tiny_model
from tests.support.families import FAMILIES


def tiny(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    return tiny_model(architecture_of(config), config, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_is_tiny_and_as_deep_as_asked(family: str) -> None:
    config = tiny_config(family, num_layers=4)
    assert num_decoder_layers(config) == 4
    assert decoder_config(config).vocab_size == 128
    assert num_parameters(tiny(config)) < 400_000


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_in_the_vocabulary_and_nothing_is_dropped(family: str) -> None:
    for name, value in tiny_config(family).to_dict().items():
        if name.endswith("_token_id"):
            assert value is None or 0 <= value < 4, name
        if name.endswith(("dropout", "pdrop")):
            assert not value, name


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gemma3_text", {"sliding_attention", "full_attention"}),
        ("qwen3_next", {"linear_attention", "full_attention"}),
        ("lfm2_moe", {"conv", "full_attention"}),
        ("nemotron_h", {"linear_attention", "dummy", "full_attention"}),
    ],
)
def test_a_family_keeps_its_mix_of_layers(family: str, kinds: set[str]) -> None:
    assert kinds - {"dummy"} <= set(decoder_config(tiny_config(family)).layer_types)


def test_a_composite_type_becomes_the_text_part_that_its_language_model_takes() -> None:
    assert tiny_config("qwen3_5").model_type == "qwen3_5_text"
    assert tiny_config("gemma3").model_type == "gemma3"


class TestLike:
    def test_features_stay_and_sizes_shrink(self) -> None:
        config = tiny_config_like(GPT2Config(scale_attn_by_inverse_layer_idx=True, activation_function="relu"), 4)
        assert isinstance(config, GPT2Config)
        assert config.scale_attn_by_inverse_layer_idx
        assert config.activation_function == "relu"
        assert (config.n_layer, config.n_embd, config.vocab_size) == (4, 32, 128)
        tiny(config)

    def test_rare_kinds_of_layers_survive_the_shortening(self) -> None:
        kinds = ["sliding_attention"] * 9 + ["full_attention"]
        config = tiny_config_like(Gemma3TextConfig(num_hidden_layers=10, layer_types=kinds), 4)
        assert config.layer_types == ["sliding_attention"] * 3 + ["full_attention"]
        tiny(config)

    @pytest.mark.parametrize("config", [LlamaConfig(tie_word_embeddings=True), Qwen2MoeConfig(decoder_sparse_step=2)])
    def test_real_defaults_make_a_model(self, config: PreTrainedConfig) -> None:
        assert num_parameters(tiny(tiny_config_like(config))) < 400_000


class TestShortened:
    def test_kinds_that_come_late_replace_the_last(self) -> None:
        assert shortened(["a"] * 6 + ["b", "c"], 4) == ["a", "a", "b", "c"]

    def test_short_enough_stays(self) -> None:
        assert shortened(["a", "b"], 4) == ["a", "b"]

    def test_never_longer_than_asked(self) -> None:
        assert len(shortened(list("abcdefgh"), 3)) == 3


class TestModel:
    def test_the_same_seed_gives_the_same_weights(self) -> None:
        first, same, other = (tiny(tiny_config("gpt2"), seed).transformer.wte.weight for seed in (0, 0, 1))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_it_leaves_the_random_numbers_of_the_caller_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        tiny(tiny_config("gpt2"))
        assert torch.equal(torch.rand(2), expected)

    def test_no_tensor_is_left_at_its_initial_constant(self) -> None:
        for name, parameter in tiny(tiny_config("gemma2")).named_parameters():
            assert parameter.std() > 0.02, name
