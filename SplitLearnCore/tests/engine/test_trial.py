"""What is exact is found out, and what is not as well."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, LlamaConfig, LlamaForCausalLM, Phi3Config

from splitlearn_core import SplitPoints, Trunk
from splitlearn_core.cache import rows_layers
from splitlearn_core.cache.part_cache import LengthLayer
from splitlearn_core.cache.ragged import AttentionSwitch, RowMasks
from splitlearn_core.engine import Joining, joined, table
from splitlearn_core.engine.batching import follows_longest_row
from splitlearn_core.engine.table import TRIAL_POINTS, batching_of, try_tiny
from splitlearn_core.engine.trial import chunk_failure, joining_failure, try_batching
from splitlearn_core.parts.classes import causal_classes
from splitlearn_core.split.cut_copy import cut_copy
from splitlearn_core.split.support import support_rows
from splitlearn_core.split.tiny import tiny_config, tiny_model
from tests.support.families import FAMILIES, swept, tiny_split

ROWS = {row.model_type: row for row in support_rows() if row.refusal is None}
PADDED = ("bloom", "falcon", "gpt_neo", "gptj", "deepseek_v3", "mpt")


def tiny_trunk(family: str) -> Trunk:
    return tiny_split(family, TRIAL_POINTS).trunk


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_of_the_named_families_share_forwards_exactly(family: str) -> None:
    trunk = tiny_trunk(family)
    assert joining_failure(trunk, None) is None
    assert chunk_failure(trunk) is None
    if family not in PADDED:
        assert joining_failure(trunk, AttentionSwitch(trunk)) is None
    assert batching_of(trunk).joining is (Joining.PADDED if family in PADDED else Joining.RAGGED)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", swept(set(ROWS) - set(FAMILIES), first=6))
def test_the_rest_of_the_table_still_holds(model_type: str) -> None:
    config = tiny_config(model_type)
    found = try_tiny(tiny_model(causal_classes(CONFIG_MAPPING[model_type])[0], config))
    row = ROWS[model_type]
    assert (found.joining.value, found.can_chunk) == (row.joining, row.whole_because is None)


def test_nearly_all_of_the_table_is_batched() -> None:
    assert sum(row.joining != "alone" for row in ROWS.values()) >= 150
    for row in ROWS.values():
        assert (row.joining == "alone") == (row.alone_because is not None)


class TestATrialNotices:
    def failure(self, family: str = "llama", *, is_ragged: bool = True) -> str | None:
        trunk = tiny_trunk(family)
        return joining_failure(trunk, AttentionSwitch(trunk) if is_ragged else None)

    def test_a_mask_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(joined, "joined_mask", lambda *_: None)
        assert "differ" in (self.failure(is_ragged=False) or "")
        assert "differ" in (self.failure() or "")

    def test_padding_on_the_wrong_side(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def right_padded(tensors: Any, length: int, dim: int) -> torch.Tensor:
            return torch.cat([torch.nn.functional.pad(t, (0, 0, 0, length - t.shape[dim])) for t in tensors])

        monkeypatch.setattr(rows_layers, "left_padded", right_padded)
        assert "differ" in (self.failure(is_ragged=False) or "")

    def test_the_first_columns_of_a_mask_in_place_of_the_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slices = RowMasks._slices

        def flipped(masks: RowMasks, mask: torch.Tensor, num_keys: Any) -> Any:
            return slices(masks, mask.flip(-1), num_keys)

        monkeypatch.setattr(RowMasks, "_slices", flipped)
        assert "differ" in (self.failure() or "")

    def test_a_window_that_is_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_window(layer: LengthLayer, query_length: int) -> tuple[int, int]:
            return layer.cached_len + query_length, 0

        monkeypatch.setattr(rows_layers.RowsAttentionLayer, "get_mask_sizes", no_window)
        assert self.failure("mistral", is_ragged=False) is not None

    def test_states_that_are_not_handed_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rows_layers.RowsLinearLayer, "commit", lambda layer: None)
        config = tiny_config("mamba")
        trunk = cut_copy(Trunk, tiny_model(causal_classes(type(config))[0], config), TRIAL_POINTS)
        assert "differ" in (joining_failure(trunk, None) or "")

    def test_a_prompt_that_must_come_whole(self) -> None:
        config = tiny_config("jamba")
        trunk = cut_copy(Trunk, tiny_model(causal_classes(type(config))[0], config), TRIAL_POINTS)
        assert "when it comes in chunks" in (chunk_failure(trunk) or "")

    def test_an_attention_that_cannot_be_ragged_is_padded(self) -> None:
        assert try_batching(tiny_trunk("bloom")).joining is Joining.PADDED

    def test_positions_by_the_place_in_the_batch(self) -> None:
        config = tiny_config("roformer")
        found = try_tiny(tiny_model(causal_classes(type(config))[0], config))
        assert found.joining is Joining.ALONE
        assert "differ" in (found.alone_because or "")


class OwnConfig(LlamaConfig):
    model_type = "own-batched"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig


class StubbornModel(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        if config.num_hidden_layers == table.TRIAL_LAYERS:
            raise RuntimeError("needs a licence")
        super().__init__(config)


class TestUnknownTypes:
    def trunk(self, architecture: type[LlamaForCausalLM]) -> Trunk:
        config = OwnConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
        return cut_copy(Trunk, tiny_model(architecture, config), SplitPoints(1, 3))

    def test_one_that_the_table_does_not_hold_is_tried_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(table, "_tried", {})
        trunk = self.trunk(OwnModel)
        assert batching_of(trunk).joining is Joining.RAGGED
        monkeypatch.setattr(table, "try_tiny", lambda model: pytest.fail("tried again"))
        assert batching_of(trunk).joining is Joining.RAGGED

    def test_one_that_cannot_be_tried_runs_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(table, "_tried", {})
        found = batching_of(self.trunk(StubbornModel))
        assert found.joining is Joining.ALONE
        assert not found.can_chunk
        assert "needs a licence" in (found.alone_because or "")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_frequencies_that_follow_the_longest_row_keep_sessions_apart(kind: str) -> None:
    config = LlamaConfig(num_hidden_layers=3, hidden_size=32, num_attention_heads=4, intermediate_size=32)
    assert not follows_longest_row(config)
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0}
    assert follows_longest_row(config)
    config.rope_parameters = {"full_attention": {"rope_type": kind}, "sliding_attention": {"rope_type": "default"}}
    assert follows_longest_row(config)
    assert not follows_longest_row(Phi3Config(rope_parameters={"rope_type": "default", "rope_theta": 1e4}))
