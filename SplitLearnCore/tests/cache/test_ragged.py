"""Attention over the keys of several sessions where they lie."""

from contextlib import suppress

import pytest
import torch

from splitlearn_core.cache.ragged import PREFIX, AttentionSwitch, RowMasks, hides_nothing
from tests.support.families import tiny_split


class TestMasks:
    def test_each_session_gets_its_rows_and_its_last_columns(self) -> None:
        mask = torch.arange(3 * 4).reshape(3, 1, 1, 4) > 1
        first, second = RowMasks([1, 2]).of(mask, [4, 2])
        assert first is not None
        assert first.flatten().tolist() == [False, False, True, True]
        assert second is None

    def test_a_mask_with_more_than_one_query_stays(self) -> None:
        mask = torch.ones(2, 1, 2, 3, dtype=torch.bool)
        masks = RowMasks([1, 1]).of(mask, [3, 2])
        assert [m is not None and m.shape for m in masks] == [(1, 1, 2, 3), (1, 1, 2, 2)]

    def test_one_row_of_a_mask_may_stand_for_all(self) -> None:
        mask = torch.tensor([False, True]).reshape(1, 1, 1, 2)
        assert all(m is not None and m.shape == (1, 1, 1, 2) for m in RowMasks([1, 2]).of(mask, [2, 2]))

    def test_no_mask_is_none_for_each(self) -> None:
        assert RowMasks([1, 2]).of(None, [2, 2]) == [None, None]

    def test_layers_with_one_mask_cut_it_once(self) -> None:
        mask, masks = torch.zeros(2, 1, 1, 3, dtype=torch.bool), RowMasks([1, 1])
        assert masks.of(mask, [3, 2]) is masks.of(mask, [3, 2])
        assert masks.of(mask, [3, 2]) is not masks.of(mask, [3, 1])

    @pytest.mark.parametrize(
        ("mask", "expected"),
        [
            (torch.tensor([True, True]), True),
            (torch.tensor([True, False]), False),
            (torch.tensor([0.0, 0.0]), True),
            (torch.tensor([0.0, -1e9]), False),
        ],
    )
    def test_masks_to_be_added_hide_with_negative_numbers(self, mask: torch.Tensor, expected: bool) -> None:
        assert hides_nothing(mask) is expected


class TestSwitch:
    @pytest.mark.parametrize(("family", "name"), [("gpt2", "sdpa"), ("gemma2", "eager")])
    def test_it_is_on_inside_only(self, family: str, name: str) -> None:
        trunk = tiny_split(family).trunk
        # Which of them an architecture begins with differs between versions of transformers.
        trunk.set_attn_implementation(name)
        switch = AttentionSwitch(trunk)
        with suppress(RuntimeError), switch.ragged():
            assert trunk.config._attn_implementation == PREFIX + name
            raise RuntimeError
        assert trunk.config._attn_implementation == name

    @pytest.mark.parametrize("family", ["gpt2", "gemma2"])
    @torch.inference_mode()
    def test_without_sessions_attention_is_what_it_was(self, family: str) -> None:
        trunk = tiny_split(family).trunk
        hidden = torch.randn(2, 5, trunk.hidden_size)
        expected = trunk(hidden)
        with AttentionSwitch(trunk).ragged():
            assert torch.equal(trunk(hidden), expected)

    def test_other_kinds_of_attention_cannot_be_ragged(self) -> None:
        trunk = tiny_split("gpt2").trunk
        trunk.config._attn_implementation = "flex_attention"
        switch = AttentionSwitch(trunk)
        assert not switch.is_possible
        with pytest.raises(ValueError, match="where they lie"), switch.ragged():
            pass
