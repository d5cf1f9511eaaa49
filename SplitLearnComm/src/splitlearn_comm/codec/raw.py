"""The raw codec, which loses nothing and costs one copy; and the face that all codecs have."""

from __future__ import annotations

from typing import Final

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec.elements import memory_of, sendable
from splitlearn_comm.codec.payload import Payload
from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES

ROLES: Final = ("hidden", "gradient", "kv")
"""What a tensor on the wire can be: hidden states, their gradients, or a part of a cache."""


class TensorCodec:
    """Turns tensors into `TensorData` messages and back. This one sends the elements as they are.

    Attributes:
        name: How the codec is asked for.
        is_lossless: Whether every bit comes back.
        missing_extra: The extra of splitlearn-comm that has to be installed first, None if nothing is missing.
        roles: What it may be used for.
    """

    name: str = "raw"
    is_lossless: bool = True
    missing_extra: str | None = None
    roles: tuple[str, ...] = ROLES

    def encode(self, tensor: torch.Tensor) -> pb.TensorData:
        """The message for a tensor of any shape, strides and device; gradients are left behind.

        Raises:
            InvalidRequestError: For a complex, quantised, sparse or meta tensor.
        """
        return self.pack(tensor).message()

    def decode(self, message: pb.TensorData) -> torch.Tensor:
        """The tensor of a message: on the CPU, writable, sharing memory with nothing.

        Raises:
            InvalidRequestError: If dtype, shape and data do not agree, or another codec made them. Nothing is
                allocated then.
        """
        return self.unpack(Payload.of(message))

    def pack(self, tensor: torch.Tensor) -> Payload:
        """What is to be sent for a tensor; raw, its `data` are a view of the tensor's own memory.

        Raises:
            InvalidRequestError: For a complex, quantised, sparse or meta tensor.
        """
        return raw_payload(sendable(tensor))

    def unpack(self, payload: Payload, *, max_tensor_bytes: int = MAX_MESSAGE_BYTES) -> torch.Tensor:
        """The tensor of what was sent, as `decode` returns it and with the same errors.

        Args:
            payload: What came.
            max_tensor_bytes: Largest tensor to make out of fewer bytes; what came raw is as large already.
        """
        return raw_tensor(payload)


def raw_payload(tensor: torch.Tensor) -> Payload:
    """The elements of a `sendable` tensor, not copied."""
    return Payload(shape=tensor.shape, dtype=tensor.dtype, data=memory_of(tensor))


def raw_tensor(payload: Payload) -> torch.Tensor:
    """A new tensor of the elements in a raw payload. Raises `InvalidRequestError` if it is none."""
    _check_raw(payload)
    if not payload.data:
        return torch.empty(payload.shape, dtype=payload.dtype)
    storage = bytearray(payload.data)
    if payload.dtype is torch.bool:
        # Any byte may arrive; a bool tensor may only hold 0 and 1.
        return torch.frombuffer(storage, dtype=torch.uint8).ne(0).view(payload.shape)
    return torch.frombuffer(storage, dtype=payload.dtype).view(payload.shape)


def checked_fields(message: pb.TensorData) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Dtype, shape and elements of a raw message, once they agree with each other.

    Raises:
        InvalidRequestError: If the dtype is unknown, a dimension is negative, there are too many, the number of bytes
            is not that of the shape, or a codec made them.
    """
    payload = Payload.of(message)
    _check_raw(payload)
    return payload.dtype, payload.shape, message.data


def _check_raw(payload: Payload) -> None:
    if payload.codec or payload.side:
        raise InvalidRequestError(
            f"a tensor came through the codec {payload.codec[:40]!r} where a raw one was expected; "
            f"send it raw, or agree on the codec first"
        )
    if payload.tensor_bytes != len(payload.data):
        raise InvalidRequestError(
            f"tensor data of the wrong length: {payload.dtype} {list(payload.shape)} needs {payload.tensor_bytes} "
            f"bytes, came {len(payload.data)}; send the elements contiguous and little-endian"
        )
