"""What a process is told of an adapter is what `peft` would make of it, and nothing that it was not told."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from splitlearn_core.errors import AdapterError
from splitlearn_core.training.adapters import MAX_VALUES, adapter_of, shapes_for, value_for
from tests.support.families import tiny_split
from tests.support.training import assert_same, fit, without_prefix


def test_ranks_and_alphas_by_pattern_are_those_of_the_whole_model() -> None:
    split = tiny_split("llama")
    lora = LoraConfig(
        r=4,
        target_modules="all-linear",
        rank_pattern={r"layers\.[1-3]\..*q_proj": 2, "up_proj": 6, "layers.3.mlp.down_proj": 3},
        alpha_pattern={r".*\.[24]\.mlp\..*": 5, "k_proj": 3.5},
    )
    torch.manual_seed(5)
    run = split.client.start_training(lora=lora, lr=1e-2)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    assert fit(split.client, run.optimizer) == fit(whole, optimizer)
    assert_same(run, whole, without_prefix)
    told = run.spec.lora
    assert told is not None
    layer = "model.layers.3"
    assert told["rank_pattern"] == {
        "model.layers.2.self_attn.q_proj": 2,
        "model.layers.2.mlp.up_proj": 6,
        f"{layer}.self_attn.q_proj": 2,
        f"{layer}.mlp.up_proj": 6,
        f"{layer}.mlp.down_proj": 3,
    }
    assert told["alpha_pattern"] == {
        "model.layers.2.self_attn.k_proj": 3.5,
        **{f"model.layers.2.mlp.{name}_proj": 5 for name in ("gate", "up", "down")},
        f"{layer}.self_attn.k_proj": 3.5,
    }


def test_a_rank_is_of_the_module_of_that_name_and_of_no_other() -> None:
    modules = ["b", "a.b", "a.bb", "axb", "c"]
    fields = {"r": 2, "lora_alpha": 7, "target_modules": modules}
    ranks, alphas = {"b": 3, "a.bb": 3, "c": 5}, {"a.b": 1.5}
    config = adapter_of({**fields, "rank_pattern": ranks, "alpha_pattern": alphas}, {}).config
    for module in modules:
        assert value_for(config, "rank_pattern", module) == ranks.get(module, 2)
        assert value_for(config, "alpha_pattern", module) == alphas.get(module, 7)


def test_so_many_different_values_are_not_looked_through() -> None:
    modules = [f"h.{index}" for index in range(MAX_VALUES + 1)]
    fields = {"r": 2, "target_modules": modules}
    adapter_of({**fields, "alpha_pattern": dict.fromkeys(modules, 3)}, {})
    with pytest.raises(AdapterError, match="expected 128 different values at most in alpha_pattern; got 129"):
        adapter_of({**fields, "alpha_pattern": {name: value for value, name in enumerate(modules)}}, {})


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:LoRA adapter added to ConvNd")
@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 5),
        Conv1D(5, 3),
        nn.Embedding(7, 3),
        nn.Conv1d(4, 6, kernel_size=3, groups=2),
        nn.Conv2d(3, 5, kernel_size=(2, 3)),
    ],
    ids=repr,
)
def test_values_are_expected_in_the_shapes_that_peft_gives_them(module: nn.Module) -> None:
    model = nn.ModuleDict({"it": module})
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["it"]), model)
    drawn = {name: list(p.shape) for name, p in model["it"].named_parameters() if p.requires_grad}
    assert drawn == shapes_for(module, 2)
