"""The options of `splitlearn train`, in groups, and what can be said of them before a model is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitlearn.cli.options import blamed_on, check_finite, check_readable
from splitlearn.errors import OptionError
from splitlearn_core.training.names import PARTS

if TYPE_CHECKING:
    from peft import LoraConfig

LONGEST_BLOCK = 1024
"""Tokens of an example, where the model could take more."""
PRECISIONS = ("float32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "sgd", "adagrad", "rmsprop")
"""Of `torch.optim`, as transformers names them; "adamw" is its default."""
ALL_LINEAR = "all-linear"
OWN_REPORTS = ("tensorboard", "trackio")
"""Reports that an extra of SplitLearnCore brings, of the same name."""
MAX_SEED = 2**32 - 1
"""What NumPy's generator, one of those that transformers seeds, takes."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """A group: what is learned, and what is held out."""

    data: Annotated[
        Path | None,
        typer.Option(
            help="Text to learn from: a .txt, cut into blocks; or a .jsonl with "
            '{"text": …} or {"prompt": …, "completion": …} a line. No default: it has to be given.',
        ),
    ] = None
    eval_data: Annotated[
        Path | None, typer.Option(help="Text of the same form, only to evaluate on. Default: the last tenth of --data.")
    ] = None
    block_size: Annotated[
        int | None, typer.Option(min=2, help=f"Tokens of an example. Default: the model's, at most {LONGEST_BLOCK}.")
    ] = None

    def check(self) -> None:
        """Raise `OptionError` where nothing is named, or what is not there."""
        if self.data is None:
            raise OptionError("--data names the text to learn from: a .txt or a .jsonl")
        for option, path in (("--data", self.data), ("--eval-data", self.eval_data)):
            check_readable(option, path)


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """A group: what trains."""

    parts: Annotated[str, typer.Option(help="Which parts train, with commas between.")] = ",".join(PARTS)
    lora_rank: Annotated[int, typer.Option(min=0, help="Rank of the adapter; 0: train all weights.")] = 8
    lora_alpha: Annotated[int, typer.Option(min=1, help="Scale of the adapter, over its rank.")] = 16
    lora_dropout: Annotated[float, typer.Option(min=0, max=1, help="Dropout before the adapter.")] = 0.0
    lora_targets: Annotated[
        str, typer.Option(help="Modules that get an adapter, by the last part of their names, with commas between.")
    ] = ALL_LINEAR

    def check(self) -> None:
        """Raise `OptionError` for parts that there are not, or where no module is named."""
        if not set(self.part_names()) <= set(PARTS):
            raise OptionError(f"--parts takes one or more of {', '.join(PARTS)}; got {self.parts!r}")
        if "" in names_in(self.lora_targets):
            raise OptionError(f"--lora-targets takes names of modules, or {ALL_LINEAR}; got {self.lora_targets!r}")

    def check_targets(self, modules: Iterable[str]) -> None:
        """Raise `OptionError` for targets of which there is none among the modules that got an adapter."""
        found = {name.rpartition(".")[2] for name in modules}
        missing = [name for name in names_in(self.lora_targets) if name != ALL_LINEAR and name not in found]
        if missing:
            raise OptionError(
                f"--lora-targets: no module of these parts is called {', '.join(missing)}; there are adapters of "
                f"{', '.join(sorted(found))} alone"
            )

    def part_names(self) -> list[str]:
        """Return the parts that train."""
        return names_in(self.parts)

    def lora(self) -> "LoraConfig | None":
        """Return the adapter, as `peft` takes it; None to train all weights."""
        from peft import LoraConfig

        if self.lora_rank == 0:
            return None
        targets = names_in(self.lora_targets)
        return LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """A group: how it is trained."""

    epochs: Annotated[float, typer.Option(min=0, help="Times through the data.")] = 1.0
    steps: Annotated[int | None, typer.Option(min=1, help="Updates. Default: as many as --epochs takes.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a forward.")] = 4
    accumulate: Annotated[int, typer.Option(min=1, help="Forwards in an update.")] = 1
    optimizer: Annotated[str, typer.Option(help=f"{', '.join(OPTIMIZERS[:-1])} or {OPTIMIZERS[-1]}.")] = OPTIMIZERS[0]
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Of the optimizer, at its highest; it falls to 0 in a line.")
    ] = 2e-4
    warmup_steps: Annotated[int, typer.Option(min=0, help="Updates until it is that high.")] = 0
    precision: Annotated[
        str, typer.Option(help="float32; or bf16 or fp16: mixed precision, where the hardware has it.")
    ] = PRECISIONS[0]
    recompute: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the trunk's layers that keep less memory and are computed again, 0 to 1."
        ),
    ] = 0.0
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, help="Of the order of the data, dropout, and the adapter's first values."),
    ] = 0

    def check(self) -> None:
        """Raise `OptionError` for a value that cannot be."""
        if self.precision not in PRECISIONS:
            raise OptionError(f"--precision takes float32, bf16 or fp16; got {self.precision!r}")
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"--optimizer takes {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        check_finite("--epochs", self.epochs)
        check_finite("--learning-rate", self.learning_rate)
        if self.epochs == 0 and self.steps is None:
            raise OptionError("--epochs takes a number above 0: there would be no update")

    def arguments(self) -> dict[str, Any]:
        """Return them, as `SplitTrainingArguments` takes them."""
        return {
            "num_train_epochs": self.epochs,
            "max_steps": self.steps or -1,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulate,
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
            "recompute_trunk": self.recompute,
            "seed": self.seed,
        } | ({} if self.optimizer == OPTIMIZERS[0] else {"optim": self.optimizer})


@dataclass(frozen=True, kw_only=True)
class KeepingOptions:
    """A group: what is written, how often, and what is gone on from."""

    output: Annotated[Path, typer.Option(help="Directory for checkpoints, the adapter and curves.png.")] = Path(
        "trained"
    )
    eval_steps: Annotated[
        int | None, typer.Option(min=1, help="Evaluate every so many updates. Default: at the end.")
    ] = None
    save_steps: Annotated[int, typer.Option(min=1, help="Write a checkpoint every so many updates.")] = 100
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --output. Default: begin.")
    ] = False
    report_to: Annotated[
        str, typer.Option(help="tensorboard, trackio or another of transformers' reports, where it is installed.")
    ] = "none"
    reconnect_timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for a trunk that was lost.")] = 600.0

    def check(self) -> None:
        """Raise `OptionError` for a value that cannot be."""
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        check_finite("--reconnect-timeout", self.reconnect_timeout)
        is_own = self.report_to in OWN_REPORTS
        verdict = f"needs pip install 'splitlearn-core[{self.report_to}]'" if is_own else "cannot be had here"
        with blamed_on("--report-to", self.report_to, verdict):
            for report in get_reporting_integration_callbacks(self.report_to):
                report()

    def checkpoint(self, steps: int | None) -> Path | None:
        """Return the checkpoint to go on from; None to begin.

        Args:
            steps: updates that were asked for; None where the data says how many.

        Raises:
            OptionError: there is none, or it has had as many updates; or there are some, and nobody said to go on.
        """
        from splitlearn_core.training.trainer import last_checkpoint, update_of

        if self.output.exists() and not self.output.is_dir():
            raise OptionError(f"--output {self.output} is a file: name a directory")
        found = last_checkpoint(self.output)
        if not self.resume:
            if any(self.output.glob("checkpoint-*")):
                raise OptionError(
                    f"--output {self.output} has checkpoints already: --resume goes on from them; or name another one"
                )
            return None
        if found is None:
            raise OptionError(
                f"--resume: there is no whole checkpoint of a split training in --output {self.output}; leave --resume "
                "out to begin one there"
            )
        if steps is not None and steps <= update_of(found):
            raise OptionError(
                f"--steps {steps}: {found} is at update {update_of(found)} already; ask for more, or begin in another "
                "--output"
            )
        return found

    def make_directory(self) -> None:
        """Make the directory; raises `OptionError` where that cannot be."""
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"--output {self.output} cannot be made: {error.strerror or error}") from error

    def arguments(self) -> dict[str, Any]:
        """Return them, as `SplitTrainingArguments` takes them."""
        return {
            "output_dir": str(self.output),
            "eval_strategy": "steps" if self.eval_steps else "no",
            "eval_steps": self.eval_steps,
            "save_steps": self.save_steps,
            "save_total_limit": 2,
            "logging_steps": 1,
            "report_to": self.report_to,
            "reconnect_timeout_s": self.reconnect_timeout,
        }


def names_in(text: str) -> list[str]:
    """Return the names between commas."""
    return [name.strip() for name in text.split(",")]
