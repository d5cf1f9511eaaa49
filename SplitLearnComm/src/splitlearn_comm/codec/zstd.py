"""Lossless: zstd over shuffled bytes.

The exponents of neighbouring floats are alike and their last digits are noise. With the first bytes of all elements
put together, then the second ones, and so on, zstd finds what there is to find (the shuffle filter of HDF5 and Blosc).
With a block of its own for each, a few tokens' float32 shrink to 0.84 and bfloat16 to 0.68, instead of 0.92 and 0.78.

Layout: `data` is one zstd frame that states its content size; its content is byte 0 of every element, then byte 1 of
every element ... in row-major order; no `side`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from splitlearn_comm.codec.compressed import Coded, CompressedTensorCodec
from splitlearn_comm.codec.elements import memory_of

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]

# Higher levels find no more in hidden states and take twice as long.
_LEVEL = 1


class ZstdCodec(CompressedTensorCodec):
    """Every bit comes back. Tensors of any dtype; one that does not become smaller travels raw."""

    name = "zstd"
    is_lossless = True
    missing_extra = "client" if zstandard is None else None

    def compress(self, tensor: torch.Tensor) -> Coded | None:
        """The shuffled bytes in one zstd frame."""
        elements = np.frombuffer(memory_of(tensor), dtype=np.uint8).reshape(-1, tensor.itemsize)
        frame = _frame(np.ascontiguousarray(elements.T))
        return Coded(frame) if len(frame) < tensor.nbytes else None

    def decompress(
        self, data: memoryview, side: memoryview, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The elements, put together again."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if side:
            raise ValueError(f"expected nothing beside the data, came {len(side)} bytes")
        planes = np.frombuffer(_content(data, num_bytes), dtype=np.uint8).reshape(dtype.itemsize, -1)
        elements = np.empty(planes.T.shape, dtype=np.uint8)
        # One plane after the other takes half the time of a transposed copy.
        for index, plane in enumerate(planes):
            elements[:, index] = plane
        flat = torch.from_numpy(elements.reshape(-1))
        # Any byte may arrive; a bool tensor may only hold 0 and 1.
        return (flat.ne(0) if dtype is torch.bool else flat.view(dtype)).view(shape)


def _frame(planes: npt.NDArray[np.uint8]) -> bytes:
    """One frame of the planes [bytes of an element, elements], each in blocks of its own."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=planes.size)
    blocks = []
    for plane in planes:
        # A block has one code for all its bytes: with two planes in one, exponents would pay for the digits' noise.
        blocks += [compressor.compress(plane.data), compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join((*blocks, compressor.flush()))


def _content(frame: memoryview, num_bytes: int) -> bytes:
    """The content of a frame that has exactly so many bytes; ValueError for any other, before memory is allocated."""
    try:
        # The decompressor allocates what the frame states, whatever limit it is given.
        stated = zstandard.frame_content_size(frame)
        if stated != num_bytes:
            raise ValueError(f"expected a frame of {num_bytes} bytes, came one that states {stated}")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=num_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"no zstd frame: {error}") from error
