"""Models with random weights, small enough to make in a test."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def save_gpt2(
    directory: Path,
    *,
    num_layers: int = 6,
    hidden_size: int = 32,
    num_heads: int = 4,
    vocabulary_size: int = 97,
    max_positions: int = 64,
    seed: int = 0,
    max_shard_size: int | str = "5GB",
) -> GPT2LMHeadModel:
    """Make a GPT-2 with random float32 weights, save it in Hugging Face format, and return it in eval mode.

    `max_shard_size` is in bytes, or text like "200KB": a checkpoint above it is saved as several files with an index.
    The defaults make about 90 thousand parameters.
    """
    config = GPT2Config(
        n_layer=num_layers,
        n_embd=hidden_size,
        n_head=num_heads,
        vocab_size=vocabulary_size,
        n_positions=max_positions,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.eval()
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model
