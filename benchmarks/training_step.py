"""What a training step costs across the cut, and what of it the server's own code costs.

GPT-2-small size, random float32 weights, no dropout, 4 sequences of 128 tokens, a LoRA adapter of rank 8 on every
layer, AdamW, one torch thread in every process. First a whole step over loopback, the server in a process of its own,
against one of the unsplit model; their losses are compared bit for bit. Then, in this process, what the server does for
a step (`TrunkTrainer`, forward and backward of layers [2, 10)) against the same layers of the unsplit model in a plain
loop, and the memory that it holds between forward and backward (what torch's allocator has given and not got back).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from benchmarks.marks import Mark, at_most
from benchmarks.models import gpt2_small
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.servers import same_threads_everywhere, trunk_server
from splitlearn import SplitModelForCausalLM
from splitlearn_core import SplitModel
from splitlearn_core.training.port import TrunkTraining
from splitlearn_core.training.run import TrainingRun
from splitlearn_core.training.seeding import DropoutSeed

SPLIT_POINTS = (2, 10)
ROWS, NUM_TOKENS, HIDDEN_SIZE = 4, 128, 768
LEARNING_RATE = 1e-4
STEP, COMPUTE, RECOMPUTED, HELD = at_most(1.05), at_most(1.05), at_most(1.40), at_most(0.65)
SHARES: dict[float, tuple[Mark | None, str]] = {
    0.0: (COMPUTE, "kept"),
    0.6: (RECOMPUTED, "of half the layers recomputed"),
    1.0: (None, "recomputed"),
}
"""Shares of the layers whose activations are computed again, with the mark of each; of eight layers 0.6 are four."""
Backward = Callable[[], torch.Tensor]
"""Ends a step; returns the gradient [B, T, H] of what went in."""
Forward = Callable[[], tuple[torch.Tensor, Backward]]
"""Begins a step; returns what comes out of the layers, [B, T, H], and what ends it."""


def lora() -> LoraConfig:
    """Return the adapter that both sides draw."""
    return LoraConfig(r=8, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)


def make_whole(directory: Path) -> PeftModel:
    """Return the unsplit model with its adapter."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.manual_seed(1)
    whole = get_peft_model(model, lora())
    assert isinstance(whole, PeftModel)
    whole.train()
    return whole


def make_split(directory: Path, trunk: str | None, *, recompute: float = 0.0) -> tuple[SplitModel, TrainingRun]:
    """Return the split model with the same adapter, trunk on a server or in this process, and its run."""
    where: dict[str, Any] = {"split_points": SPLIT_POINTS} if trunk is None else {"trunk": trunk}
    model = SplitModelForCausalLM.from_pretrained(str(directory), **where)
    torch.manual_seed(1)
    run = model.start_training(lora=lora(), optimizer="AdamW", lr=LEARNING_RATE, recompute=recompute)
    model.train()
    return model, run


def train_step(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """Do one step as anybody's loop does it; return the loss."""
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def seconds(act: Callable[[], object]) -> float:
    """Return the wall time of something."""
    began_s = time.perf_counter()
    act()
    return time.perf_counter() - began_s


def report(name: str, mark: Mark | None, ours_s: list[float], theirs_s: list[float]) -> None:
    """Print one line."""
    ours_ms, theirs_ms = (1000 * statistics.median(times) for times in (ours_s, theirs_s))
    ratio = ratio_of(ours_s, theirs_s)
    print(f"  {name}: {mark.on(ratio) if mark else ratio}; {ours_ms:.0f} ms, {theirs_ms:.0f} there", flush=True)


def compare_steps(directory: Path, num_pairs: int) -> None:
    """Print the whole step over loopback."""
    ids = torch.randint(1, 50_000, (ROWS, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    whole = make_whole(directory)
    own = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=LEARNING_RATE)
    with trunk_server(directory, "--split-points", ",".join(map(str, SPLIT_POINTS))) as address:
        split, run = make_split(directory, address)
        ours, theirs = partial(train_step, split, run.optimizer, ids), partial(train_step, whole, own, ids)
        losses = [(ours(), theirs()) for _ in range(3)]
        assert all(mine == others for mine, others in losses), losses
        times = interleaved(partial(seconds, ours), partial(seconds, theirs), num_pairs)
        run.close()
    report("a step over loopback / unsplit", STEP, *times)


def plain_layers(whole: PeftModel, hidden_BTH: torch.Tensor, gradient_BTH: torch.Tensor) -> Forward:
    """Return the trunk's layers of the unsplit model, one after the other, and no more."""
    layers = whole.base_model.model.transformer.h[slice(*SPLIT_POINTS)]
    trainable = [p for p in layers.parameters() if p.requires_grad]

    def forward() -> tuple[torch.Tensor, Backward]:
        entered_BTH = hidden_BTH.detach().requires_grad_()
        passing: Any = entered_BTH
        for layer in layers:
            output = layer(passing)
            passing = output[0] if isinstance(output, tuple) else output

        def backward() -> torch.Tensor:
            for parameter in trainable:
                parameter.grad = None
            passing.backward(gradient_BTH)
            assert entered_BTH.grad is not None
            return entered_BTH.grad

        return passing, backward

    return forward


def server_layers(training: TrunkTraining, hidden_BTH: torch.Tensor, gradient_BTH: torch.Tensor) -> Forward:
    """Return what a server does for a pass, without messages."""
    pass_ids = count(1)

    def forward() -> tuple[torch.Tensor, Backward]:
        pass_id = next(pass_ids)
        left_BTH = training.forward(pass_id, hidden_BTH, dropout=DropoutSeed(0, pass_id))

        def backward() -> torch.Tensor:
            result = training.backward(pass_id, gradient_BTH, accumulate=False)
            assert result.gradient_BTH is not None
            return result.gradient_BTH

        return left_BTH, backward

    return forward


def both_ways(forward: Forward) -> torch.Tensor:
    """Run forward and backward."""
    return forward()[1]()


def held_bytes(forward: Forward) -> float:
    """Return the memory that is held between forward and backward, the result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        output, backward = forward()
    net_bytes = sum(event.self_cpu_memory_usage for event in profiled.events())
    del output
    backward()
    return float(net_bytes)


def compare_servers(directory: Path, num_pairs: int) -> None:
    """Print what the server's code costs, and what it holds."""
    generator = torch.Generator().manual_seed(0)
    hidden_BTH, gradient_BTH = (torch.randn(ROWS, NUM_TOKENS, HIDDEN_SIZE, generator=generator) for _ in range(2))
    whole = make_whole(directory)
    plain = plain_layers(whole, hidden_BTH, gradient_BTH)
    runs = {share: make_split(directory, None, recompute=share)[1] for share in SHARES}
    layers = {share: server_layers(run.passes.training, hidden_BTH, gradient_BTH) for share, run in runs.items()}
    for share, (mark, name) in SHARES.items():
        ours = layers[share]
        assert torch.equal(ours()[0], plain()[0])
        assert torch.equal(both_ways(ours), both_ways(plain))
        times = interleaved(
            lambda ours=ours: seconds(partial(both_ways, ours)), lambda: seconds(partial(both_ways, plain)), num_pairs
        )
        report(f"the server's forward and backward, activations {name} / plain layers", mark, *times)
    for share, (_, name) in list(SHARES.items())[1:]:
        less, more = interleaved(partial(held_bytes, layers[share]), partial(held_bytes, layers[0.0]), 7)
        print(
            f"  held between forward and backward, {name} / kept: {HELD.on(ratio_of(less, more))}; "
            f"{statistics.median(less) / 1e6:.1f} MB, {statistics.median(more) / 1e6:.1f} kept",
            flush=True,
        )


def main(num_pairs: int) -> None:
    """Print the table."""
    same_threads_everywhere()
    print(f"a training step of {ROWS} x {NUM_TOKENS} tokens, GPT-2-small size, LoRA of rank 8, AdamW, float32")
    with gpt2_small(dropout=0.0) as directory:
        compare_steps(directory, num_pairs)
        compare_servers(directory, num_pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (at least 7)")
    main(parser.parse_args().pairs)
