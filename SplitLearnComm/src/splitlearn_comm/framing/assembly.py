"""Messages around one large tensor, put together with a single copy of its elements.

Protobuf copies a bytes field when it is set, again when the message is put into another, and again when that is
serialised. The bytes made here are the same message with the large field last, which any protobuf reads.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import ENUMS, sendable

_DATA = pb.TensorData.DATA_FIELD_NUMBER


def with_tensor(fields: bytes, path: tuple[int, ...], tensor: torch.Tensor, beside: bytes = b"") -> bytes:
    """A serialised message with a tensor in it.

    Args:
        fields: The message without the tensor, serialised.
        path: Field numbers that lead from the message to the tensor: one, or two if it is in a message inside.
        tensor: Of any shape, strides and device.
        beside: The other fields of the message inside, serialised.

    Raises:
        InvalidRequestError: For a tensor that cannot be sent.
    """
    tensor = sendable(tensor)
    return b"".join((fields, _before(path, tensor.shape, tensor.dtype, len(beside)), _elements(tensor), beside))


def _elements(tensor: torch.Tensor) -> bytes | ctypes.Array[ctypes.c_char]:
    """The memory of the tensor, not copied."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.numel() else b""


@lru_cache(maxsize=1024)
def _before(path: tuple[int, ...], shape: torch.Size, dtype: torch.dtype, beside_bytes: int) -> bytes:
    """All that stands between the fields of the message and the elements; the same for every token of a generation."""
    num_bytes = math.prod(shape) * dtype.itemsize
    header = pb.TensorData(shape=shape, dtype=ENUMS[dtype]).SerializeToString()  # type: ignore[arg-type]
    before = header + _field(_DATA, num_bytes)
    for depth, number in reversed(tuple(enumerate(path))):
        inside_bytes = len(before) + num_bytes + (beside_bytes if depth == 0 and len(path) > 1 else 0)
        before = _field(number, inside_bytes) + before
    return before


def _field(number: int, num_bytes: int) -> bytes:
    """Number and length of a field whose contents follow."""
    length_delimited = 2
    return _varint(number << 3 | length_delimited) + _varint(num_bytes)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
