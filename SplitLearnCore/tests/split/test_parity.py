from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from splitlearn_core import Trunk
from splitlearn_core.cache.part_cache import LengthLayer
from splitlearn_core.parts.classes import architecture_of
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.layers import find_layers
from splitlearn_core.split.parity import Parity, check_parity, difference, failure_at_other_cuts
from splitlearn_core.split.points import SplitPoints
from splitlearn_core.split.tiny import tiny_config, tiny_model
from splitlearn_core.split.trial import padded_batch
from tests.support.families import FAMILIES

MIXED = ("gemma2", "gemma3_text", "gpt_neo", "qwen3_next", "lfm2", "granitemoehybrid", "llama4_text", "jamba", "mamba")
"""Families with layers of several kinds, so that a part may hold one kind only."""


def tiny(model_type: str, num_layers: int = 6) -> PreTrainedModel:
    config = tiny_config(model_type, num_layers)
    return tiny_model(architecture_of(config), config)


@pytest.mark.parametrize("family", FAMILIES)
def test_three_parts_give_the_bits_of_the_whole(family: str) -> None:
    parity = check_parity(tiny(family), (2, 4))
    assert parity.failure() is None
    assert parity.is_exact
    assert parity.decode == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cut_is_exact(family: str) -> None:
    assert failure_at_other_cuts(tiny(family, 4), combinations(range(1, 4), 2)) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row_lengths", [(13,), (29, 18)], ids=["one row, no padding", "several windows long"])
def test_every_prompt_is_exact(family: str, row_lengths: tuple[int, ...]) -> None:
    assert failure_at_other_cuts(tiny(family), [(2, 4)], row_lengths=row_lengths) is None


@pytest.mark.parametrize("family", MIXED)
def test_a_part_may_hold_layers_of_one_kind_only(family: str) -> None:
    cuts = [(a, a + 1) for a in range(1, 5)] + [(1, 5), (2, 5)]
    assert failure_at_other_cuts(tiny(family), cuts) is None


class TestPlantedFaults:
    """The check is worth nothing unless it fails where something is wrong."""

    def failure(self, family: str = "llama", **options: Any) -> str | None:
        return check_parity(tiny(family), (2, 4), **options).failure()

    def change_trunk(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any]) -> None:
        forward = Trunk.forward

        def changed(trunk: Trunk, hidden_states: torch.Tensor, **inputs: Any) -> Any:
            change(inputs)
            return forward(trunk, hidden_states, **inputs)

        monkeypatch.setattr(Trunk, "forward", changed)

    def test_a_mask_that_the_trunk_does_not_get(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.change_trunk(monkeypatch, lambda inputs: inputs.pop("attention_mask"))
        assert "logits differ" in (self.failure(with_gradients=False) or "")

    def test_positions_that_the_trunk_does_not_get(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.change_trunk(monkeypatch, lambda inputs: inputs.pop("position_ids"))
        # Rotary positions count distances only: a row that is shifted as a whole differs in its last bits.
        parity = check_parity(tiny("llama"), (2, 4), with_gradients=False)
        assert 0 < parity.prefill < 1e-5

    def test_positions_of_another_distance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.change_trunk(monkeypatch, lambda inputs: inputs.update(position_ids=2 * inputs["position_ids"]))
        assert "logits differ" in (self.failure(with_gradients=False) or "")

    def test_a_cache_that_the_trunk_forgets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forget(inputs: dict[str, Any]) -> None:
            if inputs["past_key_values"] is not None:
                inputs["past_key_values"].reset()
                inputs["attention_mask"] = inputs["attention_mask"][:, -1:]

        self.change_trunk(monkeypatch, forget)
        assert "with a cache" in (self.failure(with_gradients=False) or "")

    def test_lengths_that_do_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LengthLayer, "advance", lambda layer, num_tokens: None)
        assert "with a cache" in (self.failure(with_gradients=False) or "")

    def test_a_layer_that_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def short_trunk(points: SplitPoints, num_layers: int) -> Cut:
            kept = range(points.bottom_end, points.trunk_end - 1)
            return Cut(num_layers=num_layers, kept=kept, has_input_embeddings=False, has_output_embeddings=False)

        monkeypatch.setattr(Cut, "trunk", short_trunk)
        assert "logits differ" in (self.failure(with_gradients=False) or "")

    def test_a_gradient_that_does_not_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = Trunk.forward

        def detached(trunk: Trunk, *args: Any, **inputs: Any) -> Any:
            output = forward(trunk, *args, **inputs)
            return output.detach() if isinstance(output, torch.Tensor) else output

        monkeypatch.setattr(Trunk, "forward", detached)
        assert "gradients differ" in (self.failure() or "")

    def test_a_model_on_which_the_trunk_has_no_effect(self) -> None:
        model = tiny("llama")
        with torch.no_grad():
            for parameter in find_layers(model).layers[2:4].parameters():
                parameter.zero_()
        assert "do not depend on the Trunk" in (check_parity(model, (2, 4)).failure() or "")


class TestFailure:
    def parity(self, **figures: float) -> Parity:
        good = {"prefill": 0.0, "decode": 0.0, "gradients": 0.0, "trunk_effect": 1.0, "cache_effect": 1.0}
        return Parity(**{**good, **figures})

    def test_another_order_of_sums_is_no_failure(self) -> None:
        parity = self.parity(prefill=1e-6, decode=4e-6, gradients=1e-6)
        assert parity.failure() is None
        assert not parity.is_exact

    @pytest.mark.parametrize("name", ["prefill", "decode", "gradients"])
    @pytest.mark.parametrize("value", [1e-5, float("inf")])
    def test_more_is_one(self, name: str, value: float) -> None:
        assert "differ" in (self.parity(**{name: value}).failure() or "")

    def test_cached_steps_must_depend_on_the_cache(self) -> None:
        assert "do not depend on what is cached" in (self.parity(cache_effect=0.0).failure() or "")


class TestDifference:
    def test_is_by_the_largest_wanted_value(self) -> None:
        assert difference(torch.tensor([1.0, -7.0]), torch.tensor([1.0, -8.0])) == 1 / 8

    def test_is_by_the_floor_where_that_is_larger(self) -> None:
        assert difference(torch.tensor([1.0]), torch.tensor([2.0]), floor=4.0) == 1 / 4

    def test_of_equal_zeros_is_zero(self) -> None:
        assert difference(torch.zeros(2), torch.zeros(2)) == 0

    @pytest.mark.parametrize("got", [float("nan"), float("inf")])
    def test_of_what_is_no_number_is_infinite(self, got: float) -> None:
        assert difference(torch.tensor([got]), torch.tensor([1.0])) == float("inf")


def test_the_batch_is_padded_on_the_left_with_the_positions_of_generate() -> None:
    batch = padded_batch(vocab_size=50, num_steps=2, row_lengths=(3, 1))
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.position_ids_BL.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    assert [step.attention_mask_BM.shape[1] for step in batch.steps()] == [4, 5]
    assert torch.equal(batch.steps()[1].input_ids_BN, batch.input_ids_BL[:, 4:])
