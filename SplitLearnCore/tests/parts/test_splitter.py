"""Splitting by configuration, and the plan made before any weight is read."""

from pathlib import Path

import pytest
import torch

from splitlearn_core import ModelFactory, ModelSplitter, SplitConfig, SplitPointError, SplitPoints, load_split_model
from tests.support.models import save_gpt2

IDS = torch.arange(8).unsqueeze(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    save_gpt2(directory)
    return directory


def test_the_plan_counts_what_the_parts_hold(checkpoint: Path) -> None:
    plan = ModelSplitter(SplitConfig(split_points=(1, 4))).plan(str(checkpoint))
    bottom, trunk, top = load_split_model(str(checkpoint), (1, 4))
    assert plan.split_points == SplitPoints(1, 4)
    assert (plan.model_type, plan.num_layers) == ("gpt2", 6)
    assert plan.bottom_parameters == sum(p.numel() for p in bottom.parameters())
    assert plan.trunk_parameters == sum(p.numel() for p in trunk.parameters())
    assert plan.top_parameters == sum(p.numel() for p in top.parameters())


def test_the_plan_reads_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    plan, expected = (ModelSplitter().plan(str(directory)) for directory in (tmp_path, checkpoint))
    assert plan == expected


def test_a_plan_out_of_range_is_refused(checkpoint: Path) -> None:
    with pytest.raises(SplitPointError, match="0 < a < b < 6"):
        ModelSplitter(SplitConfig(split_points=(4, 9))).plan(str(checkpoint))


def test_loaded_and_split_in_memory_say_the_same(checkpoint: Path, tmp_path: Path) -> None:
    splitter = ModelSplitter(SplitConfig(split_points=(1, 4)))
    loaded = splitter.load(str(checkpoint))
    split = splitter.split(save_gpt2(tmp_path))
    for bottom, trunk, top in (loaded, split):
        assert bottom.split_points == (1, 4)
        assert torch.equal(top(trunk(bottom(IDS))), loaded.top(loaded.trunk(loaded.bottom(IDS))))


@pytest.mark.parametrize(("fast", "attention"), [(True, "sdpa"), (False, "eager")])
def test_the_factory_chooses_attention(checkpoint: Path, fast: bool, attention: str) -> None:
    parts = ModelFactory.create(str(checkpoint), [2, 4], use_flash_attention=fast)
    assert parts.trunk.config._attn_implementation == attention


def test_an_unknown_option_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="colour"):
        ModelFactory.create(str(checkpoint), [2, 4], colour="blue")
