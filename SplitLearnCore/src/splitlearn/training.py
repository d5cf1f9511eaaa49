"""Fine-tuning across the cut: what people import."""

from splitlearn_core.training.arguments import SplitTrainingArguments
from splitlearn_core.training.guard import GuardConfig
from splitlearn_core.training.run import TrainingRun
from splitlearn_core.training.seeding import seeded_dropout
from splitlearn_core.training.trainer import SplitTrainer

__all__ = ["GuardConfig", "SplitTrainer", "SplitTrainingArguments", "TrainingRun", "seeded_dropout"]
