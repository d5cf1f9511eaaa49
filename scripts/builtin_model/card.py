"""The model card, written from the measured numbers."""

from pathlib import Path
from typing import Any

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
license: psf-2.0
tags: [code, python]
---

# The builtin model

A small language model of Python source text that ships inside SplitLearnCore, so that every example, test and first
try runs on a real trained model without a download. It is a GPT-2 with a vocabulary of its own. It writes text that
looks like the Python standard library; it does not know what it is talking about.

| | |
|---|---|
| Parameters | {parameters:,} ({num_layers} layers, width {width}, {num_heads} heads, tied embeddings) |
| Vocabulary | {vocab_size:,} tokens of byte-level byte-pair encoding; `<|endoftext|>` begins, ends and pads |
| Context | {context} tokens |
| Weights | float16, {weight_bytes:,} bytes; they load as float32 |

## How good it is

Measured on {files} files of the standard library ({bytes:,} bytes, {tokens:,} tokens) that were never trained on,
nor were near copies of them:

| | bits per byte |
|---|---|
| this model | **{model_bits:.3f}** |
| `xz -9e`, the files one by one | {xz_single:.3f} |
| `xz -9e`, the files as one | {xz_joined:.3f} |

The model reads whole files, from the beginning-of-text token on, in windows of {context} tokens that move by {stride};
each token is counted once, the first included, and the bits are divided by the bytes of the files.

**{parsed} of {prompts}** fixed prompts continue, greedily, into {continuation_tokens} tokens whose complete lines parse
({parsed_as_cut} of {prompts} when a block, bracket or string that is open at the cut counts as a failure). The prompts
and the exact rule are in `scripts/builtin_model/prompts.py`.

## How it was made

Trained from scratch on the source text of the standard library of CPython {python}: {training_files} files,
{training_bytes:,} bytes, {tests}. {trained_tokens:,} tokens in {steps:,} steps took {cpu_hours:.2f} hours of CPU time,
both cores taken together. The held-out files are chosen by a hash of their path; generated tables (`encodings`,
`pydoc_data`) are in neither set. The optimizer is Muon for the matrices of the layers and AdamW for the rest, with a
warmup-stable-decay schedule; the first {shallow_steps:,} steps train {shallow_layers} layers, which are then doubled.

To make it again, from the root of the repository:

    python scripts/train_builtin.py all

The result depends on the interpreter, whose own library is the corpus. A run can be stopped (SIGTERM) and resumes
from its checkpoint.

## Licence

The training text, the Python standard library, is under the PSF License Agreement, copyright Python Software
Foundation. The model may repeat passages of it.
"""


def write_card(target: Path, numbers: dict[str, Any]) -> None:
    """Write `README.md` beside the model."""
    (target / "README.md").write_text(TEMPLATE.format(**numbers))
