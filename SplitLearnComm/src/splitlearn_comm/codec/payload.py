"""The content of one `TensorData`, beside protobuf: what a codec makes of a tensor, and makes a tensor of again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec.elements import DTYPES, ENUMS
from splitlearn_comm.errors import InvalidRequestError

MAX_DIMS: Final = 8
# Beside a zero, dimensions could be so large that torch's 64-bit strides overflow.
_MAX_ELEMENTS: Final = 2**56


@dataclass(frozen=True, kw_only=True, slots=True)
class Payload:
    """A tensor as it travels: `fields()` in protobuf's hands, `data` put behind them without one more copy."""

    shape: tuple[int, ...]
    """The tensor's own shape."""
    dtype: torch.dtype
    """The tensor's own dtype."""
    data: bytes | memoryview
    """The elements, or what a codec made of them; a view keeps alive what it looks at."""
    codec: str = ""
    """Name of the codec that made the data; empty: they are the elements."""
    side: bytes = b""
    """What the codec needs beside the data."""

    @classmethod
    def of(cls, message: pb.TensorData, data: bytes | memoryview | None = None) -> Payload:
        """What a message holds; `data` instead of its own where they were cut out of it before it was parsed.

        Raises:
            InvalidRequestError: If the dtype is unknown or the shape impossible.
        """
        dtype = DTYPES.get(message.dtype)
        if dtype is None:
            known = f"one of the DType values 1 to {max(DTYPES)}"
            raise InvalidRequestError(f"tensor of unknown dtype: expected {known}, came {message.dtype}")
        data = message.data if data is None else data
        return cls(shape=_checked_shape(message.shape), dtype=dtype, data=data, codec=message.codec, side=message.side)

    @property
    def num_elements(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensor's elements, whatever the codec made of them."""
        return self.num_elements * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes that travel: `data` and `side`."""
        return len(self.data) + len(self.side)

    def fields(self) -> pb.TensorData:
        """All of the message but its `data`."""
        number = ENUMS[self.dtype]
        return pb.TensorData(shape=self.shape, dtype=number, codec=self.codec, side=self.side)  # type: ignore[arg-type]

    def message(self) -> pb.TensorData:
        """The whole message; the data are copied."""
        message = self.fields()
        message.data = bytes(self.data)
        return message


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    wanted = f"expected at most {MAX_DIMS} dimensions, none negative"
    # A message has room for millions: they are not put into an error.
    if len(shape) > MAX_DIMS:
        raise InvalidRequestError(f"tensor of an impossible shape: {wanted}, came {len(shape)} dimensions")
    if min(shape, default=0) < 0:
        raise InvalidRequestError(f"tensor of an impossible shape: {wanted}, came {list(shape)}")
    if math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise InvalidRequestError(f"tensor of an impossible shape: {list(shape)} is beyond any memory")
    return tuple(shape)
