"""Tensors to bytes and back: raw little-endian elements, nothing pickled."""

from __future__ import annotations

import ctypes
import math
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
ENUMS: Final = {dtype: number for number, dtype in DTYPES.items()}
MAX_DIMS: Final = 8
# Beside a zero, dimensions could be so large that torch's 64-bit strides overflow.
_MAX_ELEMENTS: Final = 2**56

if set(DTYPES) != set(pb.DType.values()) - {pb.DTYPE_UNSPECIFIED}:
    raise RuntimeError("the table of dtypes and the protocol's DType have come apart")


class TensorCodec:
    """Turns tensors into `TensorData` messages and back, losing nothing."""

    def encode(self, tensor: torch.Tensor) -> pb.TensorData:
        """The message for a tensor of any shape, strides and device; gradients are left behind.

        Raises:
            InvalidRequestError: For a complex, quantised, sparse or meta tensor.
        """
        tensor = sendable(tensor)
        # string_at copies once, straight into the bytes object; every other way makes an array in between.
        data = ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""
        return pb.TensorData(data=data, shape=tensor.shape, dtype=ENUMS[tensor.dtype])  # type: ignore[arg-type]

    def decode(self, message: pb.TensorData) -> torch.Tensor:
        """The tensor of a message: on the CPU, writable, sharing memory with nothing.

        Raises:
            InvalidRequestError: If dtype, shape and number of bytes do not agree. Nothing is allocated then.
        """
        dtype, shape, data = checked_fields(message)
        if not data:
            return torch.empty(shape, dtype=dtype)
        storage = bytearray(data)
        if dtype is torch.bool:
            # Any byte may arrive; a bool tensor may only hold 0 and 1.
            return torch.frombuffer(storage, dtype=torch.uint8).ne(0).view(shape)
        return torch.frombuffer(storage, dtype=dtype).view(shape)


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


def checked_fields(message: pb.TensorData) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Dtype, shape and elements of a message, once they agree with each other.

    Raises:
        InvalidRequestError: If the dtype is unknown, a dimension is negative, there are too many, or the number of
            bytes is not that of the shape.
    """
    dtype, shape, data = DTYPES.get(message.dtype), tuple(message.shape), message.data
    if dtype is None:
        known = f"one of the DType values 1 to {max(DTYPES)}"
        raise InvalidRequestError(f"tensor of unknown dtype: expected {known}, came {message.dtype}")
    if len(shape) > MAX_DIMS or min(shape, default=0) < 0:
        raise InvalidRequestError(
            f"tensor of an impossible shape: expected at most {MAX_DIMS} dimensions, none negative, came {list(shape)}"
        )
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes != len(data) or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise InvalidRequestError(
            f"tensor data of the wrong length: {dtype} {list(shape)} needs {num_bytes} bytes, "
            f"came {len(data)}; send the elements contiguous and little-endian"
        )
    return dtype, shape, data


def _refusal(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "a meta tensor has no elements to send; materialise it first"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout} cannot be sent; use .to_dense() first"
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in ENUMS)
    return f"a tensor of dtype {tensor.dtype} cannot be sent: expected one of {names}; convert it first"
