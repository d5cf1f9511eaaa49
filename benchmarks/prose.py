"""The built-in model, which knows Python only, learns English prose across the cut: perplexity before and behind.

An adapter of all parts, the text of `examples/data` without its last tenth, which is held out; the trunk is in a server
process of its own. The same training of the unsplit model with `peft` beside it.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.marks import Mark, at_most
from benchmarks.processes import one_torch_thread
from splitlearn import SplitModelForCausalLM
from splitlearn.cli.child_server import child_server
from splitlearn_core import load_tokenizer
from splitlearn_core.builtin import builtin_directory
from splitlearn_core.training.data import TextExamples, collate, read_examples

TEXT = Path(__file__).parents[1] / "examples" / "data" / "moby_dick.txt"
BLOCK, ROWS, RATE, RANK = 256, 8, 3e-3, 16
LOWER: Mark = at_most(0.75)
SAME: Mark = at_most(1.001)


def lora() -> LoraConfig:
    """Return the adapter of both runs."""
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")


def perplexity(model: nn.Module, held_out: TextExamples) -> float:
    """Return the perplexity of a text, every token of it counted once."""
    model.eval()
    loss, count = 0.0, 0
    with torch.no_grad():
        for example in held_out:
            batch = collate([example])
            num_predicted = batch["labels"].shape[1] - 1
            loss += model(**batch).loss.item() * num_predicted
            count += num_predicted
    return math.exp(loss / count)


def learn(model: nn.Module, optimizer: Any, data: TextExamples, num_steps: int, tell: Callable[[str], None]) -> None:
    """Train for so many updates, with the rate falling to zero."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    order = torch.Generator().manual_seed(0)
    model.train()
    for step in range(num_steps):
        rows = torch.randint(len(data), (ROWS,), generator=order).tolist()
        loss = model(**collate([data[row] for row in rows])).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49:
            tell(f"    update {step + 1}: loss {loss.item():.3f}")


def whole_run(data: TextExamples, held_out: TextExamples, num_steps: int) -> tuple[float, float]:
    """Return the perplexity before and behind the training of the unsplit model."""
    model = AutoModelForCausalLM.from_pretrained(builtin_directory())
    before = perplexity(model, held_out)
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora())
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=RATE)
    learn(adapted, optimizer, data, num_steps, lambda line: print(line, flush=True))
    return before, perplexity(adapted, held_out)


def split_run(data: TextExamples, held_out: TextExamples, num_steps: int) -> float:
    """Return the perplexity, of the unsplit model with the adapter, behind the training across the cut."""
    with child_server("builtin") as (address, _):
        model = SplitModelForCausalLM.from_pretrained("builtin", trunk=address)
        torch.manual_seed(0)
        run = model.start_training(lora=lora(), optimizer="adamw", lr=RATE)
        learn(model, run.optimizer, data, num_steps, lambda line: print(line, flush=True))
        behind = perplexity(model, held_out)
        run.close()
        model.trunk.close()
    return behind


def main(num_steps: int) -> None:
    """Print the table."""
    one_torch_thread()
    data, held_out = read_examples(TEXT, load_tokenizer("builtin"), BLOCK).split(TEXT)
    print(
        f"perplexity of the held-out tenth of {TEXT.name}, {num_steps} updates of {ROWS} x {BLOCK} tokens, rank {RANK}"
    )
    before, whole = whole_run(data, held_out, num_steps)
    split = split_run(data, held_out, num_steps)
    print(f"  before {before:.3f}, unsplit {whole:.3f}, across the cut {split:.3f}")
    for name, mark, ratio in (("against before", LOWER, split / before), ("against unsplit", SAME, split / whole)):
        print(f"  {name}: {ratio:.6f}, {mark}: {'met' if ratio <= mark.value else 'MISSED'}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="updates, at most 300 for the mark")
    main(parser.parse_args().steps)
