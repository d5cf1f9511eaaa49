"""`SplitTrainer`: checkpoints of both sides, evaluation, and a trunk that may go and come back.

    python examples/train_split_trainer.py                      with a server of its own, in this process
    python examples/train_split_trainer.py localhost:50051      with a running `splitlearn serve`

The same from the command line: splitlearn train builtin --data examples/data/moby_dick.txt --trunk localhost:50051
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from peft import LoraConfig

from splitlearn import SplitModelForCausalLM
from splitlearn.training import SplitTrainer, SplitTrainingArguments
from splitlearn_core import load_tokenizer
from splitlearn_core.training.data import collate, read_examples
from splitlearn_manager.quickstart import ManagedServer

TEXT = Path(__file__).parent / "data" / "moby_dick.txt"


def main(address: str | None = None) -> None:
    data, held_out = read_examples(TEXT, load_tokenizer("builtin"), block_size=128).split(TEXT)
    arguments = SplitTrainingArguments(
        output_dir="trained",
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        eval_strategy="steps",
        eval_steps=6,
        save_steps=6,
        load_best_model_at_end=True,
        logging_steps=3,
        use_cpu=True,
    )
    with ExitStack() as stack:
        if address is None:
            address = stack.enter_context(ManagedServer(port=0)).address
        model = SplitModelForCausalLM.from_pretrained("builtin", trunk=address)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        trainer = SplitTrainer(
            model, arguments, lora=lora, train_dataset=data, eval_dataset=held_out, data_collator=collate
        )
        trainer.train()  # trainer.train(resume_from_checkpoint=True) goes on from the last checkpoint
        trainer.save_model("adapter")
        trainer.run.close()
        model.trunk.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
