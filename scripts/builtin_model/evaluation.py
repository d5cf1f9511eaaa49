"""Held-out bits per byte, of the model and of xz.

Shapes: T tokens of one window.
"""

import lzma
import math
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import GPT2LMHeadModel


def bits_of_tokens(model: GPT2LMHeadModel, tokens: Sequence[int], *, context: int, stride: int) -> float:
    """Bits that the model needs for `tokens`, all but the first (the beginning-of-text token it is given).

    The window of `context` tokens moves by `stride`; a token is counted once, in the first window that holds it, so
    that from the second window on each has at least `context - stride` tokens before it.
    """
    assert 0 < stride < context, "a window's first token is given to it, so windows must overlap"
    nats, counted = 0.0, 1
    for start in range(0, max(1, len(tokens) - context + stride), stride):
        window_T = torch.tensor(tokens[start : start + context])
        targets_T = window_T[1:].clone()
        targets_T[: counted - start - 1] = -100
        logits = model(window_T[None, :-1]).logits[0]
        nats += functional.cross_entropy(logits.float(), targets_T, reduction="sum").item()
        counted = start + len(window_T)
    return nats / math.log(2)


@torch.inference_mode()
def bits_per_byte(
    model: GPT2LMHeadModel, files: Sequence[tuple[Sequence[int], int]], *, context: int, stride: int
) -> float:
    """Bits per byte over whole files, each given as (tokens with the beginning-of-text token, number of bytes)."""
    bits = sum(bits_of_tokens(model, tokens, context=context, stride=stride) for tokens, _ in files)
    return bits / sum(num_bytes for _, num_bytes in files)


def xz_bits_per_byte(contents: Sequence[bytes]) -> float:
    """What `xz -9e` needs for the same contents, each compressed by itself."""
    compressed = sum(len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) for content in contents)
    return 8 * compressed / sum(len(content) for content in contents)
