"""A plain training loop across the cut: an adapter of all three parts learns from a chapter of a novel.

    python examples/train_loop.py                      with a server of its own, in this process
    python examples/train_loop.py localhost:50051      with a running `splitlearn serve`

The loop is that of an unsplit model. The trunk's share of the adapter, its gradients and its optimizer stay on the
server; `model.parameters()` has stand-ins for them, so that clipping comes out right.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import torch
from peft import LoraConfig

from splitlearn import SplitModelForCausalLM
from splitlearn_core import load_tokenizer
from splitlearn_manager.quickstart import ManagedServer

TEXT = Path(__file__).parent / "data" / "moby_dick.txt"
NUM_STEPS, ROWS, TOKENS = 12, 4, 128


def main(address: str | None = None) -> None:
    ids = load_tokenizer("builtin")(TEXT.read_text(encoding="utf-8")).input_ids
    batches = torch.tensor(ids[: NUM_STEPS * ROWS * TOKENS]).view(NUM_STEPS, ROWS, TOKENS)
    with ExitStack() as stack:
        if address is None:
            address = stack.enter_context(ManagedServer(port=0)).address
        model = SplitModelForCausalLM.from_pretrained("builtin", trunk=address)
        run = model.start_training(lora=LoraConfig(r=8, target_modules="all-linear"), optimizer="adamw", lr=3e-3)
        model.train()
        for step, batch in enumerate(batches):
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            run.optimizer.step()  # here, and on the server
            run.optimizer.zero_grad()
            print(f"step {step}: loss {loss.item():.3f}")
        run.save_adapter("adapter")  # PeftModel.from_pretrained puts it onto the unsplit model
        run.close()
        model.trunk.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
