"""Tiny checkpoints of any family on disk, and both ways to load one: unsplit, and across the wire."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from splitlearn_core.parts.classes import architecture_of
from splitlearn_core.split.tiny import tiny_config, tiny_model

WEIGHTS = "model.safetensors"


def save_tiny(model_type: str, directory: Path, *, num_layers: int = 6, seed: int = 0) -> Path:
    """Save a tiny random float32 model of a family, whose generation never ends early by chance."""
    config = tiny_config(model_type, num_layers)
    model = tiny_model(architecture_of(config), config, seed)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.save_pretrained(directory)
    return directory


def load_whole(directory: Path) -> PreTrainedModel:
    """Load the unsplit model, as plain transformers does."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model


def change_one_value(directory: Path, name: str | None = None) -> None:
    """Change one element of one tensor of a checkpoint by the smallest step there is; sizes stay as they are."""
    tensors = load_file(directory / WEIGHTS)
    tensor = tensors[name or max(tensors)].view(-1)
    tensor[0] = torch.nextafter(tensor[0], torch.tensor(torch.inf, dtype=tensor.dtype))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def sha256_of(path: Path) -> str:
    """Return the digest of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
