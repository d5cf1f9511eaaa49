"""Casts to 16 bits: half the bytes of float32, a quarter of float64.

Layout: `data` is the tensor in the narrow dtype, row-major, little-endian; no `side`. Decoded back to its own dtype.
"""

from __future__ import annotations

import math

import torch

from splitlearn_comm.codec.compressed import Coded, CompressedTensorCodec
from splitlearn_comm.codec.rows import is_finite


class CastCodec(CompressedTensorCodec):
    """Sends floating tensors in a narrower floating dtype.

    What would not become finite numbers (NaN, infinity, beyond the narrow range) travels raw, and so does what is not
    floating or has no more bits than the narrow dtype.
    """

    is_lossless = False

    def __init__(self, name: str, narrow: torch.dtype) -> None:
        self.name = name
        self._narrow = narrow

    def compress(self, tensor: torch.Tensor) -> Coded | None:
        """The tensor in the narrow dtype."""
        if not tensor.is_floating_point() or tensor.itemsize <= self._narrow.itemsize:
            return None
        narrowed = tensor.to(self._narrow)
        return Coded(narrowed) if is_finite(narrowed) else None

    def decompress(
        self, data: memoryview, side: memoryview, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The tensor back in its own dtype."""
        num_bytes = math.prod(shape) * self._narrow.itemsize
        if len(data) != num_bytes or side or not dtype.is_floating_point:
            raise ValueError(
                f"expected {num_bytes} bytes for a floating dtype, came {len(data)} and {len(side)} beside"
            )
        return torch.frombuffer(bytearray(data), dtype=self._narrow).to(dtype).view(shape)
