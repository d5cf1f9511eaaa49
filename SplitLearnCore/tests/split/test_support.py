import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    BertConfig,
    CLIPConfig,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    T5Config,
)

from benchmarks.architectures import PAGE, as_page
from splitlearn_core import UnsupportedModelError, load_part, split_model
from splitlearn_core.parts.classes import causal_classes
from splitlearn_core.split import support
from splitlearn_core.split.parity import check_parity
from splitlearn_core.split.refusals import REASONS
from splitlearn_core.split.support import check_supported, measured_with, support_rows
from splitlearn_core.split.tiny import tiny_config, tiny_model
from tests.support.families import FAMILIES, swept

ROOT = Path(__file__).parents[3]
ROWS = {row.model_type: row for row in support_rows()}
OTHERS = [row.model_type for row in support_rows() if row.refusal is None and row.model_type not in FAMILIES]


class TestTable:
    def test_the_named_families_are_exact(self) -> None:
        for family in FAMILIES:
            row = ROWS[family]
            assert (row.refusal, row.prefill, row.gradients) == (None, 0.0, 0.0), family

    def test_at_least_150_types_are_supported(self) -> None:
        supported = [row for row in ROWS.values() if row.refusal is None]
        assert len(supported) >= 150
        for row in supported:
            figures = (row.prefill, row.decode, row.gradients)
            assert all(figure is not None and figure <= 5e-6 for figure in figures), row

    def test_what_is_refused_by_hand_is_refused_in_the_table(self) -> None:
        for model_type, reason in REASONS.items():
            assert ROWS[model_type].refusal == reason

    def test_every_reason_is_one_clause(self) -> None:
        for row in ROWS.values():
            if row.refusal is not None:
                assert "\n" not in row.refusal
                assert not row.refusal.endswith(".")

    def test_the_page_is_made_from_the_table(self) -> None:
        table = json.loads((Path(support.__file__).parent / "families.json").read_text(encoding="utf-8"))
        page = as_page(table["transformers"], table["families"])
        assert (ROOT / PAGE).read_text(encoding="utf-8") == page


@pytest.mark.slow
@pytest.mark.parametrize("model_type", swept(OTHERS))
def test_the_rest_of_the_table_still_holds(model_type: str) -> None:
    architecture = causal_classes(CONFIG_MAPPING[model_type])[0]
    parity = check_parity(tiny_model(architecture, tiny_config(model_type)), (2, 4))
    assert parity.failure() is None


class TestRefusal:
    @pytest.mark.parametrize("model_type", sorted(REASONS))
    def test_a_refused_type_is_refused_by_name(self, model_type: str) -> None:
        config = PreTrainedConfig()
        config.model_type = model_type
        with pytest.raises(UnsupportedModelError, match=f"^{model_type} cannot be cut exactly: {REASONS[model_type]}"):
            check_supported(config, GPT2LMHeadModel)

    @pytest.mark.parametrize("config", [T5Config(), CLIPConfig()])
    def test_what_is_no_causal_language_model(self, config: PreTrainedConfig) -> None:
        with pytest.raises(UnsupportedModelError, match=config.model_type):
            check_supported(config)

    def test_an_encoder_is_refused_unless_it_is_a_decoder(self) -> None:
        with pytest.raises(UnsupportedModelError, match="bert cannot be cut exactly: its layers look both ways"):
            check_supported(BertConfig())
        check_supported(tiny_config("bert"))

    @pytest.mark.parametrize(
        ("model_type", "features", "reason"),
        [
            ("bart", {"is_encoder_decoder": True}, "encoder-decoder"),
            ("bert", {"is_decoder": True, "add_cross_attention": True}, "encoder"),
            ("gemma3_text", {"use_bidirectional_attention": True}, "both ways"),
            ("trocr", {"use_learned_position_embeddings": False}, "positions"),
            ("gemma4_text", {"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input"),
            ("gemma4_text", {"num_kv_shared_layers": 2}, "num_kv_shared_layers"),
            ("glm_moe_dsa", {"indexer_types": ["full", "full", "shared"] * 2}, "indexer_types"),
        ],
    )
    def test_a_feature_that_cannot_be_cut(self, model_type: str, features: dict[str, Any], reason: str) -> None:
        config = tiny_config(model_type)
        check_supported(config)
        for name, value in features.items():
            setattr(config, name, value)
        with pytest.raises(UnsupportedModelError, match=f"^{model_type} cannot be cut exactly: .*{reason}"):
            check_supported(config)

    def test_a_model_in_memory(self) -> None:
        config = tiny_config("zaya")
        model = causal_classes(type(config))[0](config)
        with pytest.raises(UnsupportedModelError, match="zaya"):
            split_model(model, (2, 4))

    def test_a_checkpoint_before_its_weights_are_looked_for(self, tmp_path: Path) -> None:
        tiny_config("zaya").save_pretrained(tmp_path)
        with pytest.raises(UnsupportedModelError, match="zaya cannot be cut exactly"):
            load_part(str(tmp_path), "trunk")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class ForgetfulLayer(nn.Module):
    """Wraps a layer and adds what the layer before it has seen, behind the back of the loop."""

    seen: list[torch.Tensor] = []

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        before = self.seen.pop() if self.seen else torch.zeros_like(hidden_states)
        self.seen.append(hidden_states)
        output: torch.Tensor = self.layer(hidden_states + before, **kwargs)
        return output


class EntangledModel(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            self.model.layers[index] = ForgetfulLayer(layer)

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        ForgetfulLayer.seen.clear()
        return super().forward(*args, **kwargs)


class UnbuildableModel(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        raise RuntimeError("needs a licence")


class TestUnknownTypes:
    @pytest.fixture(autouse=True)
    def nothing_checked_yet(self) -> Iterator[None]:
        support._checked.clear()
        yield
        support._checked.clear()

    def test_one_that_can_be_cut_passes(self) -> None:
        check_supported(OwnConfig(), OwnModel)

    def test_one_with_a_state_across_layers_is_refused_by_name(self) -> None:
        with pytest.raises(UnsupportedModelError, match=r"own cannot be cut exactly: .*differ"):
            check_supported(OwnConfig(), EntangledModel)

    def test_one_that_cannot_be_checked_is_refused_with_the_cause(self) -> None:
        with pytest.raises(UnsupportedModelError, match=r"own cannot be cut exactly: .*needs a licence"):
            check_supported(OwnConfig(), UnbuildableModel)

    def test_another_class_of_a_known_type_is_not_taken_for_it(self) -> None:
        with pytest.raises(UnsupportedModelError, match="llama cannot be cut exactly"):
            check_supported(LlamaConfig(), EntangledModel)

    def test_the_answer_is_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check_supported(OwnConfig(), OwnModel)
        monkeypatch.setattr(support, "self_check", None)
        check_supported(OwnConfig(), OwnModel)

    def test_a_table_of_another_version_is_not_believed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def remember(config: PreTrainedConfig, architecture: type) -> None:
            asked.append(config.model_type)

        monkeypatch.setattr(support, "self_check", remember)
        check_supported(LlamaConfig())
        assert not asked or measured_with() != support.transformers.__version__
        monkeypatch.setattr(support.transformers, "__version__", "5.99.0")
        check_supported(LlamaConfig())
        assert asked == ["llama"]
