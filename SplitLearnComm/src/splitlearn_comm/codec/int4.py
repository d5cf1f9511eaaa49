"""4 bits an element after a rotation that spreads outliers over their neighbours.

A Hadamard rotation of a block with one large element gives a block of elements of one size, which 16 levels suit far
better (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456). The signs of the inputs are flipped first by the Rudin-Shapiro
sequence, whose own rotation is as flat as can be, so that a constant block is spread as well.

Layout, R rows of the last dimension H, padded with zeros to P, a multiple of 32; G = P / 32 groups:
    data    uint8 [R, P / 2]: two elements a byte, the first in the low bits: rotated element / scale of its group,
            rounded, plus 8 (so 1 to 15)
    side    bfloat16 [R, G]: scales of the groups
The rotation works on blocks of B elements, B the largest power of two up to 256 that divides P: block @ M, where
M[i, j] = (-1)^popcount(i & i >> 1) * (-1)^popcount(i & j) / sqrt(B).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch.nn.functional import pad

from splitlearn_comm.codec.compressed import Coded, CompressedTensorCodec
from splitlearn_comm.codec.rows import can_span, is_quantisable, join, peaks_of, scales_for, take

_LEVELS = 7
_OFFSET = 8
_GROUP = 32
_MAX_BLOCK = 256
# A rotation back can add up a whole block: sqrt(256) times the largest element.
_HEADROOM = 16


class Int4Codec(CompressedTensorCodec):
    """Four bits an element and a scale for each group of 32, after a Hadamard rotation; 0.14 of float32.

    What is not floating, has NaN or infinity in it or comes near the end of its dtype travels raw.
    """

    name = "int4"
    is_lossless = False
    # A head of a cache is a short row without a column to spare, and what a cache loses is lost for all tokens after.
    roles = ("hidden", "gradient")

    def compress(self, tensor: torch.Tensor) -> Coded | None:
        """Rotated groups with their scales, two elements a byte."""
        if not is_quantisable(tensor):
            return None
        width = tensor.shape[-1]
        rows_RP = pad(tensor.reshape(-1, width).float(), (0, _padded(width) - width))
        rotation_BB = _rotation(_block(rows_RP.shape[1]))
        groups_NG = (rows_RP.view(-1, len(rotation_BB)) @ rotation_BB).view(-1, _GROUP)
        scales_N = scales_for(peaks_of(groups_NG, 1), _LEVELS).to(torch.bfloat16)
        if not can_span(scales_N, _LEVELS * _HEADROOM, tensor.dtype):
            return None
        # A bfloat16 is within 1/512 of its float32, so the peak is at most 7.02 steps: nothing to clamp.
        steps_NG = groups_NG.div_(scales_N.float()[:, None]).round_().add_(_OFFSET).to(torch.uint8)
        pairs = steps_NG.view(-1, 2)
        return Coded(pairs[:, 0] | pairs[:, 1] << 4, join(scales_N))

    def decompress(
        self, data: memoryview, side: memoryview, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The groups times their scales, rotated back."""
        width = shape[-1]
        num_rows, padded = math.prod(shape[:-1]), _padded(width)
        if len(data) != num_rows * padded // 2 or not dtype.is_floating_point:
            raise ValueError(f"expected {num_rows * padded // 2} bytes for a floating dtype, came {len(data)}")
        (scales_N,) = take(side, (torch.bfloat16, num_rows * padded // _GROUP))
        if not can_span(scales_N, _LEVELS * _HEADROOM, dtype):
            raise ValueError("a scale is negative, not finite or beyond the dtype")
        pairs = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        steps = torch.stack((pairs & 15, pairs >> 4), dim=-1).to(torch.int8).sub_(_OFFSET)
        groups_NG = steps.view(-1, _GROUP) * scales_N.float()[:, None]
        rotation_BB = _rotation(_block(padded))
        rows_RP = (groups_NG.view(-1, len(rotation_BB)) @ rotation_BB.T).view(num_rows, padded)
        return rows_RP[:, :width].to(dtype).reshape(shape)


def _padded(width: int) -> int:
    return -(-width // _GROUP) * _GROUP


def _block(padded: int) -> int:
    return min(padded & -padded, _MAX_BLOCK)


@lru_cache
def _rotation(size: int) -> torch.Tensor:
    """The orthogonal matrix of a block, float32 [size, size]; size is a power of two."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < size:
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)))
    signs = torch.tensor([1 - 2 * ((i & i >> 1).bit_count() % 2) for i in range(size)])
    return signs[:, None] * hadamard / math.sqrt(size)
