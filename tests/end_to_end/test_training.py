"""Training across the wire is training on one machine, to the last bit."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from splitlearn import SplitModelForCausalLM
from splitlearn.remote import RemoteTrunk
from splitlearn_comm import GRPCComputeServer, ResourceExhaustedError, UnsupportedOperationError
from splitlearn_core.split.layers import find_layers
from splitlearn_core.training.seeding import seeded_dropout
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk
from splitlearn_manager.runtime.training_desk import TrainingLimits
from tests.support.families import Split, tiny_split
from tests.support.training import NUM_STEPS, assert_same, batches, fit, whole_weights, without_prefix
from tests.support.trunk_process import TrunkProcess


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)


def in_bfloat16(output: torch.Tensor | tuple[torch.Tensor, None]) -> Any:
    """What a layer returned, in bfloat16, in the form that it had."""
    return (in_bfloat16(output[0]), *output[1:]) if isinstance(output, tuple) else output.to(torch.bfloat16)


@contextmanager
def across_the_wire(split: Split, **limits: Any) -> Iterator[None]:
    """Put a server between a split model's client and its trunk."""
    host = HostedTrunk(split.trunk, name="trunk", training_limits=TrainingLimits(**limits))
    local = split.client.trunk
    with GRPCComputeServer(host, port=0) as server, RemoteTrunk.connect(server.address) as port:
        split.client.trunk = port
        yield
    split.client.trunk = local


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_an_adapter_of_all_parts(family: str) -> None:
    split = tiny_split(family)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora())
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    with seeded_dropout(whole.base_model.model, 3):
        expected = fit(whole, optimizer, clip=0.05)
    with across_the_wire(split):
        torch.manual_seed(5)
        run = split.client.start_training(lora=lora(), lr=1e-2)
        with seeded_dropout(split.client, 3):
            assert fit(split.client, run.optimizer, clip=0.05) == expected
        assert_same(run, whole, without_prefix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_weights_where_the_server_allows_it(dtype: torch.dtype) -> None:
    split = tiny_split("llama")
    for model in (split.whole, split.client, split.trunk):
        model.to(dtype)
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    expected = fit(whole, torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9), clip=1.0)
    with across_the_wire(split, allow_full=True):
        run = split.client.start_training(optimizer="sgd", lr=0.1, momentum=0.9)
        assert fit(split.client, run.optimizer, clip=1.0) == expected
        assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_an_adapter_in_mixed_precision(family: str, recompute: bool) -> None:
    split = tiny_split(family)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora())
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    with seeded_dropout(whole.base_model.model, 3):
        expected = fit(whole, optimizer, clip=0.05, autocast=torch.bfloat16)
    with across_the_wire(split):
        torch.manual_seed(5)
        run = split.client.start_training(lora=lora(), lr=1e-2, recompute=recompute)
        with seeded_dropout(split.client, 3):
            assert fit(split.client, run.optimizer, clip=0.05, autocast=torch.bfloat16) == expected
        assert_same(run, whole, without_prefix)


def test_hidden_states_and_gradients_cross_in_the_dtype_that_they_have_there() -> None:
    split = tiny_split("llama")
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    for model, index in ((whole, 1), (split.client, 1), (whole, 3), (split.trunk, 3)):
        # As of an architecture whose layers end with a product of matrices.
        find_layers(model).layers[index].register_forward_hook(
            lambda layer, args, output: in_bfloat16(output), prepend=True
        )
    expected = fit(whole, torch.optim.SGD(whole.parameters(), lr=0.1), autocast=torch.bfloat16)
    with across_the_wire(split, allow_full=True):
        run = split.client.start_training(optimizer="sgd", lr=0.1)
        assert fit(split.client, run.optimizer, autocast=torch.bfloat16) == expected
        assert_same(run, whole)


def test_all_weights_in_float16_with_steps_that_overflow() -> None:
    split = tiny_split("llama")
    whole = copy.deepcopy(split.whole).requires_grad_(True)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-8) for _ in range(2)]
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    expected = fit(whole, optimizer, clip=1.0, autocast=torch.float16, scaler=scalers[0])
    with across_the_wire(split, allow_full=True):
        run = split.client.start_training(optimizer="sgd", lr=0.1, momentum=0.9)
        assert fit(split.client, run.optimizer, clip=1.0, autocast=torch.float16, scaler=scalers[1]) == expected
        assert 0 < run.update_id < NUM_STEPS
        assert_same(run, whole)


def test_hidden_states_that_overflow_reach_the_scaler() -> None:
    split = tiny_split("llama")
    with across_the_wire(split):
        run = split.client.start_training(lora=lora(), lr=1e-2)
        with torch.no_grad():
            split.client.model.embed_tokens.weight.mul_(float("inf"))
        scaler = torch.amp.GradScaler("cpu")
        fit(split.client, run.optimizer, num_steps=1, autocast=torch.float16, scaler=scaler)
        assert run.update_id == 0
        assert not run.guard.counts, "it was the scaler's to skip"
        fit(split.client, run.optimizer, num_steps=1)
        assert run.guard.counts == {"nonfinite": 1}


def test_a_forward_for_which_there_is_no_room_is_refused() -> None:
    def begin(split: Split, **options: Any) -> Any:
        torch.manual_seed(5)
        plain = LoraConfig(r=4, target_modules="all-linear")
        return split.client.start_training(lora=plain, lr=1e-2, **options)

    def losses_at_once(split: Split) -> torch.Tensor:
        split.client.train()
        return torch.stack([split.client(**batch).loss for batch in batches(2)]).sum()

    split = tiny_split("llama")
    expected = fit(split.client, begin(split).optimizer)
    split = tiny_split("llama")
    with across_the_wire(split, max_bytes=170_000):  # for the adapter and one forward
        run = begin(split)
        split.client.train()
        first = split.client(**batches(1)[0]).loss
        with pytest.raises(ResourceExhaustedError, match=r"hold \d+ here of at most 170000: train with recompute=True"):
            losses_at_once(split)
        first.backward()
        run.close()
        run = begin(split)
        assert fit(split.client, run.optimizer) == expected
        run.close()
        run = begin(split, recompute=True)
        losses_at_once(split).backward()


def test_a_server_that_refuses_leaves_the_model_as_it_was() -> None:
    split = tiny_split("llama")
    before = [(name, id(p), p.requires_grad) for name, p in split.client.named_parameters()]
    with across_the_wire(split):
        with pytest.raises(UnsupportedOperationError, match="allow_full_training"):
            split.client.start_training(lr=0.1)
        assert [(name, id(p), p.requires_grad) for name, p in split.client.named_parameters()] == before
        split.client.start_training(lora=lora(), lr=0.1).close()


def test_a_loop_without_a_run_trains_bottom_and_top_through_the_trunk() -> None:
    split = tiny_split("gpt2")
    whole = copy.deepcopy(split.whole)
    trunk_names = {name for name, _ in split.trunk.named_parameters()} - {
        name for name, _ in split.client.named_parameters()
    }
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name not in trunk_names)
    expected = fit(whole, torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=0.1))
    client: nn.Module = split.client
    client.requires_grad_(True)
    with across_the_wire(split):
        assert fit(client, torch.optim.SGD(client.parameters(), lr=0.1)) == expected


def test_a_checkpoint_remembers_through_what_its_tensors_went(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = tiny_split("llama")
    host = HostedTrunk(split.trunk, name="trunk")
    with GRPCComputeServer(host, port=0) as server:
        for codec, resumed in (("bf16", False), ("bf16", True), ("raw", True)):
            with RemoteTrunk.connect(server.address, codec=codec) as split.client.trunk:
                run = split.client.start_training(lora=lora(), lr=1e-2)
                if resumed:
                    run.resume("coded", tmp_path)
                else:
                    fit(split.client, run.optimizer, num_steps=1)
                    run.save_checkpoint("coded", tmp_path)
                run.close()
            was_warned = "was trained with codecs" in caplog.text
            assert was_warned == (codec == "raw")
    assert "'hidden to server': 'bf16'" in caplog.text


@pytest.mark.slow
def test_it_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    def begin(address: str) -> Any:
        torch.manual_seed(5)
        model = SplitModelForCausalLM.from_pretrained(trunk=address)
        return model.start_training(lora=LoraConfig(r=2, target_modules=["c_attn"]), lr=1e-2)

    with TrunkProcess() as process:
        run = begin(process.start())
        fit(run.model, run.optimizer)
        run.save_checkpoint("half", tmp_path)
        expected = fit(run.model, run.optimizer)
        weights = {name: tensor.clone() for name, tensor in whole_weights(run).items()}
        run.resume("half", tmp_path)
        process.kill()
        with pytest.raises(ConnectionError):
            fit(run.model, run.optimizer)
    with TrunkProcess() as process:
        again = begin(process.start())
        again.resume("half", tmp_path)
        assert fit(again.model, again.optimizer) == expected
        got = whole_weights(again)
        assert all(torch.equal(got[name], tensor) for name, tensor in weights.items())
        again.model.trunk.close()
