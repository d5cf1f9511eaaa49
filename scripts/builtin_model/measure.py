"""All numbers of the model card, measured on an exported model."""

import sysconfig
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builtin_model.evaluation import bits_per_byte, xz_bits_per_byte
from builtin_model.files import PreparedFile, TrainingDirectory, load_prepared, read_json
from builtin_model.plan import TrainingPlan
from builtin_model.prompts import CONTINUATION_TOKENS, PROMPTS, evaluate_prompts


def measure(directory: TrainingDirectory, exported: Path, *, stride: int) -> dict[str, Any]:
    """The numbers of the model in `exported`, which came from the run in `directory`."""
    held_out = load_prepared(directory, "held_out")
    return {
        **_model_numbers(exported, held_out, stride=stride),
        **_file_numbers(held_out),
        **_run_numbers(directory),
    }


def _model_numbers(exported: Path, held_out: list[PreparedFile], *, stride: int) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(exported)
    config = model.config
    continuations = evaluate_prompts(model, tokenizer)
    files = [(file.tokens, file.num_bytes) for file in held_out]
    return {
        "model_bits": bits_per_byte(model, files, context=config.n_positions, stride=stride),
        "stride": stride,
        "context": config.n_positions,
        "parameters": model.num_parameters(),
        "num_layers": config.n_layer,
        "width": config.n_embd,
        "num_heads": config.n_head,
        "vocab_size": config.vocab_size,
        "weight_bytes": (exported / "model.safetensors").stat().st_size,
        "prompts": len(PROMPTS),
        "parsed": sum(continuation.parses for continuation in continuations),
        "parsed_as_cut": sum(continuation.parses_as_cut for continuation in continuations),
        "continuation_tokens": CONTINUATION_TOKENS,
        "continuations": [asdict(continuation) for continuation in continuations],
    }


def _file_numbers(held_out: list[PreparedFile]) -> dict[str, Any]:
    library = Path(sysconfig.get_path("stdlib"))
    contents = [(library / file.name).read_bytes() for file in held_out]
    return {
        "files": len(held_out),
        "bytes": sum(file.num_bytes for file in held_out),
        "tokens": sum(len(file.tokens) - 1 for file in held_out),
        "xz_single": xz_bits_per_byte(contents),
        "xz_joined": xz_bits_per_byte([b"".join(contents)]),
    }


def _run_numbers(directory: TrainingDirectory) -> dict[str, Any]:
    corpus = read_json(directory.corpus)
    state = torch.load(directory.checkpoint, weights_only=True)
    plan = TrainingPlan(**state["plan"])
    tests = f"{corpus['training_test_files']} of them tests" if corpus["training_test_files"] else "tests left out"
    return {
        "python": corpus["python"],
        "training_files": corpus["training_files"],
        "training_bytes": corpus["training_bytes"],
        "tests": tests,
        "trained_tokens": state["tokens"],
        "steps": state["step"],
        "cpu_hours": state["cpu_s"] / 3600,
        "shallow_steps": plan.shallow_steps,
        "shallow_layers": plan.shallow_layers,
    }
