"""Make the model that ships as "builtin": corpus, tokenizer, training, export, measurement.

    python scripts/train_builtin.py all

Every command works on one directory and can be given alone. `train` resumes when that directory holds a checkpoint,
and stops with one at SIGTERM; the number of steps may be changed in between, so the decay of the learning rate can be
put where the time ends. Needs torch, transformers and tokenizers, no accelerator, and no network.

With glibc, these keep freed memory in the process instead of giving it back at every step, which saves a fifth of the
CPU time:

    MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
"""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from builtin_model.card import write_card
from builtin_model.export import export_model
from builtin_model.files import TrainingDirectory, load_prepared, prepare, write_json
from builtin_model.measure import measure
from builtin_model.plan import TrainingPlan
from builtin_model.training import Trainer

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE_DATA = REPOSITORY / "SplitLearnCore" / "src" / "splitlearn_core" / "builtin"


def run_prepare(directory: TrainingDirectory, plan: TrainingPlan, options: argparse.Namespace) -> None:
    """Corpus and tokenizer."""
    prepare(directory, with_tests=options.with_tests, vocab_size=plan.vocab_size)


def run_train(directory: TrainingDirectory, plan: TrainingPlan, options: argparse.Namespace) -> None:
    """Train, or go on training."""
    documents = [file.tokens for file in load_prepared(directory, "training")]
    held_out = [(file.tokens, file.num_bytes) for file in load_prepared(directory, "held_out")]
    Trainer(documents, held_out, plan, directory).run()


def run_export(directory: TrainingDirectory, plan: TrainingPlan, options: argparse.Namespace) -> None:
    """Checkpoint to package data."""
    export_model(directory, options.target)


def run_evaluate(directory: TrainingDirectory, plan: TrainingPlan, options: argparse.Namespace) -> None:
    """Measure the exported model, print its continuations, write the numbers and the card."""
    numbers = measure(directory, options.target, stride=options.stride)
    for continuation in numbers["continuations"]:
        print(f"--- {continuation['reason']}\n{continuation['prompt']}|{continuation['text']}")
    print({name: value for name, value in numbers.items() if name != "continuations"})
    write_json(directory.evaluation, numbers)
    write_card(options.target, numbers)


def run_all(directory: TrainingDirectory, plan: TrainingPlan, options: argparse.Namespace) -> None:
    """Everything, in order."""
    if not directory.tokens.exists():
        run_prepare(directory, plan, options)
    for run in (run_train, run_export, run_evaluate):
        run(directory, plan, options)


COMMANDS = {
    "prepare": run_prepare,
    "train": run_train,
    "export": run_export,
    "evaluate": run_evaluate,
    "all": run_all,
}


def parse_options() -> argparse.Namespace:
    """The command line; every field of `TrainingPlan` is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--directory", type=Path, default=REPOSITORY / ".cache" / "builtin", help="of the run")
    parser.add_argument("--target", type=Path, default=PACKAGE_DATA, help="where the model is exported to")
    parser.add_argument("--stride", type=int, default=256, help="tokens the evaluation's window moves by")
    parser.add_argument("--with-tests", action="store_true", help="train on the library's test directories too")
    for field in fields(TrainingPlan):
        assert field.default is not MISSING
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default)
    return parser.parse_args()


def main() -> None:
    """Run one command."""
    options = parse_options()
    values: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(TrainingPlan)}
    COMMANDS[options.command](TrainingDirectory(options.directory), TrainingPlan(**values), options)


if __name__ == "__main__":
    main()
