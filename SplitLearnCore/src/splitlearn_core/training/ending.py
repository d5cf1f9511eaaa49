"""What `SplitTrainer` does when the trunk's server says that it stops: save, leave, and come back."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from splitlearn_core.training.run import TrainingRun


class TrunkEnds(Exception):
    """Leaves the loop of `Trainer`: the trunk's server stops, and both sides are saved as they are."""


class SaveBeforeTheEnd(TrainerCallback):
    """Asks for a checkpoint behind the update at which the trunk was heard to stop, and raises when it is there.

    Behind the last update nothing is left to come back for: there the loop ends by itself.

    Args:
        run: the training.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask `Trainer` to save."""
        if self._run.is_trunk_ending:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave, now that it has saved.

        Raises:
            TrunkEnds: there are updates left.
        """
        if self._run.is_trunk_ending and not control.should_training_stop:
            raise TrunkEnds
