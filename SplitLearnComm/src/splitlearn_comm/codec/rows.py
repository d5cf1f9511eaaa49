"""What the quantising codecs share: rows, scales, and the small tensors that travel beside the data.

R rows (tokens), H the last dimension.
"""

from __future__ import annotations

import math

import torch

from splitlearn_comm.codec.elements import memory_of

_FLOAT32 = torch.finfo(torch.float32)


def is_quantisable(tensor: torch.Tensor) -> bool:
    """Whether there is anything to gain: a floating dtype of 16 bits or more."""
    return tensor.is_floating_point() and tensor.itemsize > 1


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating tensor holds neither NaN nor infinity."""
    low, high = tensor.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def peaks_of(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The largest magnitude along a dimension; NaN where there is one."""
    # Not abs().amax(): that writes another tensor of the whole size.
    return torch.maximum(values.amax(dim), values.amin(dim).neg_())


def scales_for(peaks: torch.Tensor, levels: int) -> torch.Tensor:
    """The step size, never 0, with which `levels` steps reach each peak."""
    return (peaks / levels).clamp_min_(_FLOAT32.tiny)


def can_span(scales: torch.Tensor, levels: int, dtype: torch.dtype) -> bool:
    """Whether no scale is NaN or negative, and `levels` steps of each are a finite number of float32 and the dtype."""
    if not scales.numel():
        return True
    low, high = scales.aminmax()
    info = torch.finfo(dtype)
    # Up to a quarter of eps above its largest number a dtype rounds down to it.
    limit = min(info.max * (1 + info.eps / 4), _FLOAT32.max)
    return low.item() >= 0 and high.item() * levels <= limit


def join(*tensors: torch.Tensor) -> bytes:
    """The elements of contiguous tensors one after the other."""
    return b"".join(memory_of(tensor) for tensor in tensors)


def take(side: memoryview, *wanted: tuple[torch.dtype, int]) -> list[torch.Tensor]:
    """What `join` put together: flat tensors of these dtypes and lengths, wider dtypes first.

    Raises:
        ValueError: The number of bytes is another one.
    """
    sizes = [dtype.itemsize * count for dtype, count in wanted]
    if sum(sizes) != len(side):
        raise ValueError(f"expected {sum(sizes)} bytes beside the data, came {len(side)}")
    parts = torch.split(torch.frombuffer(bytearray(side), dtype=torch.uint8), sizes)
    return [part.view(dtype) for part, (dtype, _) in zip(parts, wanted, strict=True)]
