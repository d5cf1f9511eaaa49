"""Element types of the wire, and the memory of a tensor as it is sent: little-endian, row-major, contiguous."""

from __future__ import annotations

import ctypes
from typing import Final

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import InvalidRequestError

DTYPES: Final[dict[int, torch.dtype]] = {
    pb.DTYPE_FLOAT64: torch.float64,
    pb.DTYPE_FLOAT32: torch.float32,
    pb.DTYPE_FLOAT16: torch.float16,
    pb.DTYPE_BFLOAT16: torch.bfloat16,
    pb.DTYPE_FLOAT8_E4M3FN: torch.float8_e4m3fn,
    pb.DTYPE_FLOAT8_E5M2: torch.float8_e5m2,
    pb.DTYPE_INT64: torch.int64,
    pb.DTYPE_INT32: torch.int32,
    pb.DTYPE_INT16: torch.int16,
    pb.DTYPE_INT8: torch.int8,
    pb.DTYPE_UINT64: torch.uint64,
    pb.DTYPE_UINT32: torch.uint32,
    pb.DTYPE_UINT16: torch.uint16,
    pb.DTYPE_UINT8: torch.uint8,
    pb.DTYPE_BOOL: torch.bool,
}
"""Every element type of the wire, by its number there."""
ENUMS: Final = {dtype: number for number, dtype in DTYPES.items()}
"""The same the other way round."""

if set(DTYPES) != set(pb.DType.values()) - {pb.DTYPE_UNSPECIFIED}:
    raise RuntimeError("the table of dtypes and the protocol's DType have come apart")


def sendable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a copy of it, with its elements in the CPU's memory in the order they are sent in.

    Raises:
        InvalidRequestError: For a complex, quantised, sparse or meta tensor.
    """
    if tensor.dtype not in ENUMS or tensor.layout is not torch.strided or tensor.is_meta:
        raise InvalidRequestError(_refusal(tensor))
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_neg():
        return tensor.detach().cpu().contiguous().resolve_neg()
    return tensor


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a `sendable` tensor, not copied; the view keeps the tensor alive."""
    if not tensor.numel():
        return memoryview(b"")
    # Through numpy this takes ten times as long, and numpy has no bfloat16.
    elements = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    elements.owner = tensor  # type: ignore[attr-defined]
    return memoryview(elements).cast("B")


def _refusal(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "a meta tensor has no elements to send; materialise it first"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout} cannot be sent; use .to_dense() first"
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in ENUMS)
    return f"a tensor of dtype {tensor.dtype} cannot be sent: expected one of {names}; convert it first"
