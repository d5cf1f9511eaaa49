"""Checkpoints with random weights, of the shape of real ones."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel


@contextmanager
def gpt2_small(
    max_shard_size: str = "10GB", dtype: torch.dtype = torch.float32, num_layers: int = 12, dropout: float = 0.1
) -> Iterator[Path]:
    """Write a checkpoint of GPT-2-small's shape (12 layers, width 768, 124 M parameters) into a temporary directory."""
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = GPT2Config(n_layer=num_layers, bos_token_id=0, eos_token_id=None, pad_token_id=0, **rates)
    model = GPT2LMHeadModel(config)
    torch.nn.Module.to(model, dtype)  # in place; the model's own is wrapped in a way that hides its arguments
    with tempfile.TemporaryDirectory(prefix="splitlearn-bench-") as directory:
        model.save_pretrained(directory, max_shard_size=max_shard_size)
        del model
        yield Path(directory)
