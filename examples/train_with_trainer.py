"""`transformers.Trainer` across the cut: it knows nothing of it, and is given the run's optimizer.

    python examples/train_with_trainer.py                      with a server of its own, in this process
    python examples/train_with_trainer.py localhost:50051      with a running `splitlearn serve`

Accumulation, clipping, the schedule and the logged gradient norms are Trainer's own, and those of an unsplit model.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from peft import LoraConfig
from transformers import Trainer, TrainingArguments

from splitlearn import SplitModelForCausalLM
from splitlearn_core import load_tokenizer
from splitlearn_core.training.data import collate, read_examples
from splitlearn_manager.quickstart import ManagedServer

TEXT = Path(__file__).parent / "data" / "moby_dick.txt"


def main(address: str | None = None) -> None:
    data = read_examples(TEXT, load_tokenizer("builtin"), block_size=128)
    arguments = TrainingArguments(
        output_dir="trained",
        max_steps=12,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        logging_steps=3,
        save_strategy="no",  # SplitTrainer saves both sides
        use_cpu=True,
    )
    with ExitStack() as stack:
        if address is None:
            address = stack.enter_context(ManagedServer(port=0)).address
        model = SplitModelForCausalLM.from_pretrained("builtin", trunk=address)
        run = model.start_training(lora=LoraConfig(r=8, target_modules="all-linear"), lr=3e-3)
        optimizers = (run.optimizer, None)
        Trainer(model, arguments, train_dataset=data, data_collator=collate, optimizers=optimizers).train()
        run.save_adapter("adapter")
        run.close()
        model.trunk.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
