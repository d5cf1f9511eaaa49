"""A `SplitTrainer` of a tiny model, with its data."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.utils.data import Dataset

from splitlearn.training import SplitTrainer, SplitTrainingArguments
from tests.support.families import Split
from tests.support.training import batches


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Single rows of the micro-batches."""

    def __init__(self, num: int = 8) -> None:
        self.rows = [{key: tensor[row] for key, tensor in batch.items()} for batch in batches(num) for row in (0, 1)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear")


def options(directory: Path, **further: Any) -> dict[str, Any]:
    return {
        "output_dir": str(directory),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **further,
    }


def trainer_of(split: Split, directory: Path, callbacks: Any = None, **further: Any) -> SplitTrainer:
    torch.manual_seed(5)
    arguments = SplitTrainingArguments(**options(directory, **further))
    return SplitTrainer(
        split.client, arguments, lora=lora(), train_dataset=Rows(), eval_dataset=Rows(2), callbacks=callbacks
    )
