"""From a checkpoint to a directory that `from_pretrained` loads."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from builtin_model.files import TrainingDirectory, read_json, write_json
from builtin_model.model import build_model, grown
from builtin_model.plan import TrainingPlan
from builtin_model.tokenizer import as_pretrained

MAX_FILE_BYTES = 12_000_000
"""What the weights may take in the package."""


def export_model(directory: TrainingDirectory, target: Path) -> None:
    """Write weights (float16), configurations and tokenizer of the run in `directory` to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    state = torch.load(directory.checkpoint, weights_only=True)
    plan = TrainingPlan(**state["plan"])
    _write_model(_trained_model(state, plan), target)
    _write_tokenizer(Tokenizer.from_file(str(directory.tokenizer)), plan, target)


def _trained_model(state: dict[str, Any], plan: TrainingPlan) -> GPT2LMHeadModel:
    """The checkpoint's model, in full depth even when it has not grown yet."""
    model = build_model(
        num_layers=state["num_layers"], width=plan.width, vocab_size=plan.vocab_size, context=plan.long_block
    )
    model.load_state_dict(state["model"])
    return model if state["num_layers"] == plan.num_layers else grown(model, num_layers=plan.num_layers)


def _write_model(model: GPT2LMHeadModel, target: Path) -> None:
    model.half().save_pretrained(target)
    weights = target / "model.safetensors"
    weights.chmod(0o644)  # it is written for its owner alone, and a package is installed for everyone
    if (num_bytes := weights.stat().st_size) >= MAX_FILE_BYTES:
        raise SystemExit(f"{weights} has {num_bytes} bytes, fewer than {MAX_FILE_BYTES} are allowed: use less width.")
    # float16 is how the weights are stored; a CPU computes with them in float32, so that is what a load gives.
    write_json(target / "config.json", read_json(target / "config.json") | {"dtype": "float32"})
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    write_json(target / "generation_config.json", special)


def _write_tokenizer(tokenizer: Tokenizer, plan: TrainingPlan, target: Path) -> None:
    as_pretrained(tokenizer, max_length=plan.long_block).save_pretrained(target)
    # The name of the class that every release of transformers knows, not the one that this release gives it.
    config = read_json(target / "tokenizer_config.json") | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    write_json(target / "tokenizer_config.json", config)
