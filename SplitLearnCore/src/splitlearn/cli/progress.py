"""What `splitlearn train` shows on the way."""

import sys
from typing import Any

from rich.console import Console
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

NUM_LINES = 20
"""Lines of a whole training, about."""
SHOWN = (("loss", "loss {:.4f}"), ("eval_loss", "held out {:.4f}"), ("grad_norm", "norm {:.3g}"))


class Bar(ProgressCallback):
    """A bar that moves, without the numbers."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Leave them to the lines."""


class Lines(TrainerCallback):
    """A line now and then: how far it is, losses, how fast.

    Args:
        out: where to.
    """

    def __init__(self, out: Console) -> None:
        self._out = out
        self._said_at_step = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say what was logged, if it is time."""
        logs = logs or {}
        is_due = state.global_step - self._said_at_step >= state.max_steps / NUM_LINES or "eval_loss" in logs
        told = [form.format(logs[name]) for name, form in SHOWN if name in logs]
        if told and state.max_steps and (is_due or state.global_step in (1, state.max_steps)):
            self._said_at_step = state.global_step
            speed = f", {logs['samples_per_second']:.1f} examples/s" if "samples_per_second" in logs else ""
            self._out.print(f"update {state.global_step} of {state.max_steps}: {', '.join(told)}{speed}")


def has_terminal() -> bool:
    """Return whether somebody looks at a bar that moves."""
    return sys.stderr.isatty()
