"""`transformers.Trainer` knows nothing of the cut, and trains as on the whole model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from tests.support.families import tiny_split
from tests.support.training import assert_same, batches, without_prefix


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Single rows of the micro-batches."""

    def __init__(self) -> None:
        self.rows = [{key: tensor[row] for key, tensor in batch.items()} for batch in batches(8) for row in (0, 1)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def losses_of(model: Any, optimizer: Any, directory: Path, **options: Any) -> list[float]:
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=Rows(), optimizers=(optimizer, None))
    trainer.train()
    return [(entry["loss"], entry["grad_norm"], entry["learning_rate"]) for entry in trainer.state.log_history[:-1]]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_it_trains_as_on_the_whole_model(tmp_path: Path, options: dict[str, bool]) -> None:
    split, lora = tiny_split("llama"), LoraConfig(r=4, target_modules="all-linear")
    torch.manual_seed(5)
    run = split.client.start_training(lora=lora, lr=1e-2)
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora)
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad], lr=1e-2)
    expected = losses_of(whole.base_model.model, optimizer, tmp_path, **options)
    assert losses_of(split.client, run.optimizer, tmp_path, **options) == expected
    assert len(expected) == 6
    assert run.update_id == 6
    assert_same(run, whole, without_prefix)
