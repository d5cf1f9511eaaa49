"""Every causal language model type of transformers through the one generic cut.

    python -m benchmarks.architectures             measure all and print
    python -m benchmarks.architectures gpt2 llama  measure some
    python -m benchmarks.architectures --write     measure all and write the table that the package reads
    python -m benchmarks.architectures --batching --write   keep the figures, try again which sessions share forwards

A type is supported when a tiny random model of it, six layers cut at (2, 4), gives the unsplit model's numbers in a
padded prefill, ten cached steps and all gradients, and when every other cut, a single row without padding and a prompt
several windows long do so too. Its sessions share forwards when a Trunk of four layers gives each of several sessions
of different lengths the hidden states that it gets alone. All figures are differences by the largest logit (or
gradient) of the unsplit model.
"""

import argparse
import json
import multiprocessing
import resource
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from splitlearn_core.engine.table import TRIAL_LAYERS, try_tiny
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
    parser.add_argument("--batching", action="store_true", help="keep the figures of the table, try the batching only")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE} and {PAGE}")
    arguments = parser.parse_args()
    how = try_again if arguments.batching else measure
    families = measure_all(arguments.model_types or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), arguments.jobs, how)
    supported = [row for row in families.values() if "refusal" not in row]
    exact = [row for row in supported if row["prefill"] == row["gradients"] == 0]
    print(f"{len(supported)} of {len(families)} supported, {len(exact)} of them bit for bit in prefill and gradients")
    print(f"sessions of {sum(row['joining'] != 'alone' for row in supported)} share forwards")
    if arguments.write:
        TABLE.write_text(as_json(families), encoding="utf-8")
        PAGE.write_text(as_page(transformers.__version__, families), encoding="utf-8")


def measure_all(
    model_types: Iterable[str], jobs: int, how: Callable[[str], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Measure model types in several processes."""
    families: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare) as pool:
        futures: dict[str, Future[dict[str, Any]]] = {kind: pool.submit(how, kind) for kind in model_types}
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
    figures = {"prefill": parity.prefill, "decode": parity.decode, "gradients": parity.gradients}
    return {**row, **figures, **batching_fields(model)}


def try_again(model_type: str) -> dict[str, Any]:
    """Return the row of a type as the table has it, with the batching tried anew."""
    row: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))["families"][model_type]
    if "refusal" in row:
        return row
    architecture = causal_classes(CONFIG_MAPPING[model_type])[0]
    return {**row, **batching_fields(tiny_model(architecture, tiny_config(model_type, TRIAL_LAYERS)))}


def batching_fields(model: PreTrainedModel) -> dict[str, Any]:
    """Return how the sessions of an architecture share forwards, as fields of a row."""
    batching = try_tiny(model)
    reasons = {"alone_because": batching.alone_because, "whole_because": batching.whole_because}
    return {"joining": batching.joining.value, **{name: reason for name, reason in reasons.items() if reason}}


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
        f"| {kind} | {row['architecture']} | {row['prefill']:.1e} | {row['decode']:.1e} | {row['gradients']:.1e} "
        f"| {BATCHED[row['joining']]} |"
        for kind, row in rows
        if "refusal" not in row
    ]
    alone = [f"| {kind} | {row['alone_because']} |" for kind, row in rows if "alone_because" in row]
    whole = [f"| {kind} | {row['whole_because']} |" for kind, row in rows if "whole_because" in row]
    refused = [f"| {kind} | {row['architecture']} | {row['refusal']} |" for kind, row in rows if "refusal" in row]
    return PAGE_TEMPLATE.format(
        version=version,
        num_supported=len(supported),
        num_refused=len(refused),
        supported="\n".join(supported),
        num_alone=len(alone),
        alone="\n".join(alone),
        num_whole=len(whole),
        whole="\n".join(whole),
        refused="\n".join(refused),
    )


BATCHED = {"ragged": "yes", "padded": "yes, padded", "alone": "one by one"}

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

A server runs steps of different sessions in one forward where that gives each of them the hidden states that it would
get alone ("batched" below): tried on a Trunk of four layers with sessions of different lengths, one left-padded with
two rows, that come and go between steps. "yes" uses every session's keys where they lie; "yes, padded" copies them
together at every step, because the architecture does not look its attention function up by name. All others run one by
one, and so does any checkpoint whose rotary frequencies follow the longest row of a forward (`dynamic`, `longrope`).

## Supported: {num_supported}

| model type | class | prefill | decode | gradients | batched |
|---|---|---|---|---|---|
{supported}

## Sessions one by one: {num_alone}

| model type | why |
|---|---|
{alone}

## Prompts in one piece: {num_whole}

Long prompts of other sessions run in chunks between the steps of those that wait; these come whole.

| model type | why |
|---|---|
{whole}

## Refused: {num_refused}

| model type | class | why |
|---|---|---|
{refused}
"""


if __name__ == "__main__":
    main()
