"""`splitlearn train`: an adapter, or all weights, from a file of text."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from splitlearn.cli.groups import with_groups
from splitlearn.cli.loading import load_split
from splitlearn.cli.options import CutOptions, Model, TrunkOptions, blamed_on
from splitlearn.cli.progress import Bar, Lines, has_terminal
from splitlearn.cli.quiet import set_up_logging
from splitlearn.cli.security import CallerOptions
from splitlearn.cli.texts import read_texts
from splitlearn.cli.train_options import AdapterOptions, KeepingOptions, TextOptions, UpdateOptions
from splitlearn.errors import needing
from splitlearn_core import SplitModel, load_tokenizer
from splitlearn_core.checkpoint.source import locate
from splitlearn_core.parts.load_piece import read_config
from splitlearn_core.split.layers import max_positions

if TYPE_CHECKING:
    from splitlearn_core.training.trainer import SplitTrainer

ADAPTER = "adapter"
WEIGHTS = "weights"


@with_groups
def train(
    model: Model = "builtin",
    *,
    texts: TextOptions,
    trunk: TrunkOptions,
    adapter: AdapterOptions,
    updates: UpdateOptions,
    keeping: KeepingOptions,
    cut: CutOptions,
    caller: CallerOptions,
) -> None:
    """Fine-tune a split model; text, token ids and labels stay in this process."""
    set_up_logging("warning")
    look_for_packages()
    for check in (texts.check, trunk.check, adapter.check, updates.check, keeping.check, cut.check):
        check()
    checkpoint = keeping.checkpoint(updates.steps)
    out = Console(highlight=False, soft_wrap=True)
    torch.manual_seed(updates.seed)
    source = locate(model, cut.revision)
    tokenizer = load_tokenizer(model, source.commit)
    examples, held_out = read_texts(texts, tokenizer, max_positions(read_config(source)))
    keeping.make_directory()
    split = load_split(model, source, trunk=trunk, cut=cut, caller=caller, timings=True)
    out.print(f"learning from {len(examples)} examples of {examples.num_tokens} tokens, {len(held_out)} held out")
    try:
        trainer = make_trainer(
            split, adapter, updates, keeping, train_dataset=examples, eval_dataset=held_out, processing_class=tokenizer
        )
        try:
            if trainer.run.adapter is not None:
                adapter.check_targets(trainer.run.adapter.modules)
            speak(out, trainer)
            run(out, trainer, keeping.output, checkpoint)
        finally:
            trainer.run.close()
    finally:
        split.trunk.close()


def look_for_packages() -> None:
    """See that what training needs is installed, before a model is loaded.

    Raises:
        MissingPackageError: no.
    """
    with needing("`splitlearn train` needs peft and accelerate: pip install 'splitlearn-core[train]'"):
        for package in ("accelerate", "peft"):
            import_module(package)
    # Of two layouts of weights peft chooses the right one and says so, and transformers calls its own old names.
    warnings.filterwarnings("ignore", module=r"peft\.|transformers\.")


def make_trainer(
    split: SplitModel, adapter: AdapterOptions, updates: UpdateOptions, keeping: KeepingOptions, **others: Any
) -> "SplitTrainer":
    """Make the trainer.

    Raises:
        OptionError: the hardware has no such precision.
        TrainingError: what trains cannot be trained so, or its server does not do it.
    """
    from splitlearn_core.training.arguments import SplitTrainingArguments
    from splitlearn_core.training.data import collate
    from splitlearn_core.training.trainer import SplitTrainer

    with blamed_on("--precision", updates.precision, "cannot be had here"):
        arguments = SplitTrainingArguments(
            train_parts=adapter.part_names(),
            use_cpu=split.device.type == "cpu",
            dataloader_pin_memory=False,
            logging_nan_inf_filter=False,
            disable_tqdm=not has_terminal(),
            **updates.arguments(),
            **keeping.arguments(),
        )
    return SplitTrainer(split, arguments, lora=adapter.lora(), data_collator=collate, **others)


def speak(out: Console, trainer: "SplitTrainer") -> None:
    """Have a trainer print lines of ours instead of its dictionaries."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.pop_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Bar())
    trainer.add_callback(Lines(out))


def run(out: Console, trainer: "SplitTrainer", output: Path, checkpoint: Path | None) -> None:
    """Train, say where everything is, and evaluate.

    Args:
        out: where to say it.
        trainer: what trains.
        output: where everything is to be.
        checkpoint: what is gone on from; None to begin.
    """
    from splitlearn_core.training.trainer import update_of

    before = None
    if checkpoint is None:
        before = trainer.evaluate()["eval_loss"]
    else:
        out.print(f"going on from update {update_of(checkpoint)} in {checkpoint}")
    with saying_how_to_go_on(out, output):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if checkpoint is not None and trainer.state.global_step == update_of(checkpoint):
        out.print(f"it has had all updates of --epochs {trainer.args.num_train_epochs:g} already")
    save(out, trainer, output)
    trainer.pop_callback(Lines)
    after = trainer.evaluate()["eval_loss"]
    out.print(f"loss on what was held out: {after:.4f}" + ("" if before is None else f", before {before:.4f}"))


@contextmanager
def saying_how_to_go_on(out: Console, output: Path) -> Iterator[None]:
    """Where a training ends before its end, because somebody stops it or the trunk is lost, say what is left of it."""
    from splitlearn_core.training.trainer import LOST, last_checkpoint

    try:
        yield
    except (KeyboardInterrupt, *LOST):
        found = last_checkpoint(output)
        left = "no checkpoint (--save-steps)" if found is None else f"{found}: --resume goes on from it"
        out.print(f"the training has not come to its end; there is {left}")
        raise


def save(out: Console, trainer: "SplitTrainer", output: Path) -> None:
    """Write what was trained, and say where it is."""
    if trainer.run.adapter is not None:
        trainer.save_model(str(output / ADAPTER))
        out.print(f"adapter of the whole model, for PeftModel.from_pretrained: {output / ADAPTER}")
    else:
        trainer.run.save_checkpoint(WEIGHTS, output)
        out.print(f"what was trained, both sides: {output / WEIGHTS}")
