"""What a `SplitTrainer` is told, beside what every `Trainer` is."""

from dataclasses import dataclass, field
from typing import Any

from transformers import Trainer, TrainingArguments

from splitlearn_core.errors import TrainingError
from splitlearn_core.training.guard import GuardConfig
from splitlearn_core.training.names import PARTS


@dataclass
class SplitTrainingArguments(TrainingArguments):
    """Arguments of a training across the cut; all of `transformers.TrainingArguments`, and these.

    Raises:
        TrainingError: a value that cannot be.
    """

    train_parts: list[str] = field(
        default_factory=lambda: list(PARTS), metadata={"help": "Which parts train: any of bottom, trunk, top."}
    )
    recompute_trunk: float = field(
        default=0.0, metadata={"help": "Share of the trunk's layers whose activations are computed again, 0 to 1."}
    )
    guard_nonfinite: str = field(
        default="skip", metadata={"help": "Gradients with NaN or infinity: skip, lower_rate or stop."}
    )
    guard_spike: str | None = field(
        default=None,
        metadata={"help": "Norms far above those before: skip, lower_rate or stop. Default: not looked at."},
    )
    guard_spike_factor: float = field(default=10.0, metadata={"help": "How far above: times their median."})
    on_lost: str = field(
        default="stop",
        metadata={"help": "An update at which the trunk is lost again and again: stop, or skip to leave it out."},
    )
    guard_max_in_a_row: int = field(default=10, metadata={"help": "Updates left out one after the other at most."})
    reconnect_timeout_s: float = field(
        default=600.0,
        metadata={"help": "Seconds to wait for a lost trunk, before the training goes on from its last checkpoint."},
    )
    draw_curves: bool = field(default=True, metadata={"help": "Write curves.png into the output directory at the end."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.reconnect_timeout_s < 0:
            raise TrainingError(f"reconnect_timeout_s is at least 0; got {self.reconnect_timeout_s}")
        if self.on_lost not in ("stop", "skip"):
            raise TrainingError(f"on_lost is stop or skip; got {self.on_lost!r}")
        if self.on_lost == "skip" and self.fp16:
            raise TrainingError("on_lost='skip' does not go with fp16: a scaler takes no update without gradients")
        self.guard()

    def guard(self) -> GuardConfig:
        """Return what is done about gradients that make no sense."""
        return GuardConfig(
            on_nonfinite=self.guard_nonfinite,  # type: ignore[arg-type]  # looked at there
            on_spike=self.guard_spike,  # type: ignore[arg-type]
            spike_factor=self.guard_spike_factor,
            max_in_a_row=self.guard_max_in_a_row,
        )

    def optimizer(self) -> tuple[type[Any], dict[str, Any]]:
        """Return the optimizer's class and its options, as `Trainer` chooses them from `optim`."""
        kind, options = Trainer.get_optimizer_cls_and_kwargs(self)
        return kind, {**options, "weight_decay": self.weight_decay}
