"""Every causal language model type of transformers through the one generic cut.

    python -m benchmarks.architectures             measure all and print
    python -m benchmarks.architectures gpt2 llama  measure some
    python -m benchmarks.architectures --write     measure all and write the table that the package reads

A type is supported when a tiny random model of it, six layers cut at (2, 4), gives the unsplit model's numbers in a
padded prefill, ten cached steps and all gradients, and when every other cut, a single row without padding and a prompt
several windows long do so too. All figures are differences by the largest logit (or gradient) of the unsplit model.
"""

import argparse
import json
import multiprocessing
import resource
import warnings
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from splitlearn_core.parts.classes import causal_classes
from splitlearn_core.split.parity import Parity, check_parity, failure_at_other_cuts
from splitlearn_core.split.refusals import REASONS
from splitlearn_core.split.support import first_line
from splitlearn_core.split.tiny import tiny_config, tiny_model

NUM_LAYERS = 6
SPLIT_POINTS = (2, 4)
LONG_ROWS = (29, 18)
"""Several windows of the eight tokens that tiny models look back."""
MAX_MEMORY_BYTES = 8 << 30
TABLE = Path("SplitLearnCore/src/splitlearn_core/split/families.json")
PAGE = Path("docs/support.md")


def main() -> None:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model_types", nargs="*", help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default 2")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE} and {PAGE}")
    arguments = parser.parse_args()
    families = measure_all(arguments.model_types or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), arguments.jobs)
    supported = [row for row in families.values() if "refusal" not in row]
    exact = [row for row in supported if row["prefill"] == row["gradients"] == 0]
    print(f"{len(supported)} of {len(families)} supported, {len(exact)} of them bit for bit in prefill and gradients")
    if arguments.write:
        TABLE.write_text(as_json(families), encoding="utf-8")
        PAGE.write_text(as_page(transformers.__version__, families), encoding="utf-8")


def measure_all(model_types: Iterable[str], jobs: int) -> dict[str, dict[str, Any]]:
    """Measure model types in several processes."""
    families: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare) as pool:
        futures: dict[str, Future[dict[str, Any]]] = {kind: pool.submit(measure, kind) for kind in model_types}
        for model_type, future in futures.items():
            families[model_type] = future.result()
            print(model_type, *families[model_type].values(), flush=True)
    return families


def prepare() -> None:
    """Make a worker small and quiet."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def measure(model_type: str) -> dict[str, Any]:
    """Return a row of the table: the class, and either the figures or the refusal."""
    architecture = causal_classes(CONFIG_MAPPING[model_type])[0]
    row: dict[str, Any] = {"architecture": architecture.__name__}
    if model_type in REASONS:
        return {**row, "refusal": REASONS[model_type]}
    try:
        model = tiny_model(architecture, tiny_config(model_type, NUM_LAYERS))
        parity, failure = everything(model)
    except Exception as error:  # any architecture may fail with anything; the table says with what
        return {**row, "refusal": f"a part of it fails on its own ({first_line(error)})"}
    if failure is not None:
        return {**row, "refusal": failure}
    return {**row, "prefill": parity.prefill, "decode": parity.decode, "gradients": parity.gradients}


def everything(model: PreTrainedModel) -> tuple[Parity, str | None]:
    """Return the figures of the one measured cut, and what does not hold there or anywhere else."""
    parity = check_parity(model, SPLIT_POINTS)
    if (failure := parity.failure()) is not None:
        return parity, failure
    failure = (
        failure_at_other_cuts(model, combinations(range(1, NUM_LAYERS), 2))
        or failure_at_other_cuts(model, [SPLIT_POINTS], row_lengths=LONG_ROWS)
        or failure_at_other_cuts(model, [SPLIT_POINTS], row_lengths=LONG_ROWS[:1])
    )
    return parity, failure


def as_json(families: dict[str, dict[str, Any]]) -> str:
    """Return the table, one line a model type, so that a change shows as one line."""
    lines = ",\n".join(f"    {json.dumps(kind)}: {json.dumps(row)}" for kind, row in sorted(families.items()))
    return f'{{\n  "transformers": "{transformers.__version__}",\n  "families": {{\n{lines}\n  }}\n}}\n'


def as_page(version: str, families: dict[str, dict[str, Any]]) -> str:
    """Return the page of the documentation."""
    rows = sorted(families.items())
    supported = [
        f"| {kind} | {row['architecture']} | {row['prefill']:.1e} | {row['decode']:.1e} | {row['gradients']:.1e} |"
        for kind, row in rows
        if "refusal" not in row
    ]
    refused = [f"| {kind} | {row['architecture']} | {row['refusal']} |" for kind, row in rows if "refusal" in row]
    return PAGE_TEMPLATE.format(
        version=version,
        num_supported=len(supported),
        num_refused=len(refused),
        supported="\n".join(supported),
        refused="\n".join(refused),
    )


PAGE_TEMPLATE = """# What can be cut

Made by `python -m benchmarks.architectures --write` with transformers {version}; do not edit. `splitlearn support`
shows the same.

A model type is supported when a tiny random model of it (six layers, cut at (2, 4), float32 on the CPU) gives the
unsplit model's numbers in a left-padded prefill, in ten cached steps and in all gradients, and when every other cut, a
single row and a prompt several attention windows long do so too. The figures are the largest difference by the
largest logit, or by the largest gradient of the same parameter; 0.0e+00 means that every bit is equal. A type that is
not in the table is checked the same way on the spot, before any weights are read.

A type of the table is also refused where a checkpoint has a feature that cannot be cut: an encoder-decoder, layers that
look both ways (an encoder without `is_decoder=True`), embeddings, keys and values or index choices that layers share
across the cut. The error names the feature.

## Supported: {num_supported}

| model type | class | prefill | decode | gradients |
|---|---|---|---|---|
{supported}

## Refused: {num_refused}

| model type | class | why |
|---|---|---|
{refused}
"""


if __name__ == "__main__":
    main()
