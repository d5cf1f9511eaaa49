"""8 bits an element: a scale for each token, and the columns that hold outliers kept in 16 bits.

Hidden states have a few columns ten and more times larger than the others; one scale over both would leave the others
with a handful of steps (LLM.int8, Dettmers et al. 2022, arXiv 2208.07339, keeps such columns in 16 bits). Here the
H // 128 columns with the largest elements are kept, so that the number of bytes follows from the shape alone.

Layout, R rows of the last dimension H, K = H // 128 columns:
    data    int8 [R, H]: element / scale of its row, rounded; 0 in kept columns
    side    float32 [R]: scales of the rows; float32 [K]: scales of the kept columns;
            uint16 (int32 if H > 65536) [K]: which columns; int16 [R, K]: element / scale of its column
"""

from __future__ import annotations

import math

import torch

from splitlearn_comm.codec.compressed import Coded, CompressedTensorCodec
from splitlearn_comm.codec.rows import can_span, is_quantisable, join, peaks_of, scales_for, take

_ROW_LEVELS = 127
_COLUMN_LEVELS = 32767
_WIDTH_PER_KEPT_COLUMN = 128


class Int8Codec(CompressedTensorCodec):
    """Symmetric int8 per row of the last dimension, outlier columns apart; 0.27 of float32 from H = 128 on.

    What is not floating, or has NaN or infinity in it, travels raw. float64 passes through float32.
    """

    name = "int8"
    is_lossless = False
    # A head of a cache is a short row without a column to spare, and what a cache loses is lost for all tokens after.
    roles = ("hidden", "gradient")

    def compress(self, tensor: torch.Tensor) -> Coded | None:
        """Rows and kept columns, each with their scales."""
        if not is_quantisable(tensor):
            return None
        rows_RH = tensor.reshape(-1, tensor.shape[-1]).float()
        column_peaks_K, columns_K = peaks_of(rows_RH, 0).topk(_num_kept(rows_RH.shape[1]), sorted=False)
        column_scales_K = scales_for(column_peaks_K, _COLUMN_LEVELS)
        others_RH = rows_RH.index_fill(1, columns_K, 0)
        row_scales_R = scales_for(peaks_of(others_RH, 1), _ROW_LEVELS)
        if not _can_span(row_scales_R, column_scales_K, tensor.dtype):
            return None
        steps_RH = others_RH.div_(row_scales_R[:, None]).round_().to(torch.int8)
        kept_RK = rows_RH.index_select(1, columns_K).div_(column_scales_K).round_().to(torch.int16)
        numbers_K = columns_K.to(_number_dtype(rows_RH.shape[1]))
        return Coded(steps_RH, join(row_scales_R, column_scales_K, numbers_K, kept_RK))

    def decompress(
        self, data: memoryview, side: memoryview, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The rows times their scales, with the kept columns put back."""
        width = shape[-1]
        num_rows, num_kept = math.prod(shape[:-1]), _num_kept(width)
        if len(data) != num_rows * width or not dtype.is_floating_point:
            raise ValueError(f"expected {num_rows * width} bytes for a floating dtype, came {len(data)}")
        row_scales_R, column_scales_K, numbers_K, kept = take(
            side,
            (torch.float32, num_rows),
            (torch.float32, num_kept),
            (_number_dtype(width), num_kept),
            (torch.int16, num_rows * num_kept),
        )
        if not _can_span(row_scales_R, column_scales_K, dtype):
            raise ValueError("a scale is negative, not finite or beyond the dtype")
        columns_K = numbers_K.long()
        if num_kept and not (columns_K.min().item() >= 0 and columns_K.max().item() < width):
            raise ValueError(f"a kept column is outside the {width} there are")
        steps_RH = torch.frombuffer(bytearray(data), dtype=torch.int8).view(num_rows, width)
        rows_RH = steps_RH * row_scales_R[:, None]
        rows_RH.index_copy_(1, columns_K, kept.view(num_rows, num_kept) * column_scales_K)
        return rows_RH.to(dtype).view(shape)


def _num_kept(width: int) -> int:
    return width // _WIDTH_PER_KEPT_COLUMN


def _number_dtype(width: int) -> torch.dtype:
    return torch.uint16 if width <= 2**16 else torch.int32


def _can_span(row_scales_R: torch.Tensor, column_scales_K: torch.Tensor, dtype: torch.dtype) -> bool:
    return can_span(row_scales_R, _ROW_LEVELS, dtype) and can_span(column_scales_K, _COLUMN_LEVELS, dtype)
