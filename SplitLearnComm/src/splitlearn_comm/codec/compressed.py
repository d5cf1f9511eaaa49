"""What a codec that sends fewer bytes has to say; the messages around it and the checks are done here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from splitlearn_comm.codec.elements import memory_of, sendable
from splitlearn_comm.codec.payload import Payload
from splitlearn_comm.codec.raw import TensorCodec, raw_payload, raw_tensor
from splitlearn_comm.errors import InvalidRequestError, MessageTooLargeError
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class Coded:
    """What a codec makes of a tensor."""

    data: torch.Tensor | bytes
    """The bulk of it: bytes, or a tensor of any dtype, whose elements are sent, without a copy if contiguous."""
    side: bytes = b""
    """What else is needed to undo it, little-endian: scales and the like."""


class CompressedTensorCodec(TensorCodec, ABC):
    """A codec that sends fewer bytes than there are in the elements: derive from it to write your own.

    Give it a `name`, say `is_lossless = True` if it is, write `compress` and `decompress`, and `register_codec` it on
    both sides.
    """

    name = ""
    is_lossless = False

    @abstractmethod
    def compress(self, tensor: torch.Tensor) -> Coded | None:
        """What to send for a tensor, or None to send it raw: wrong dtype, not finite, or nothing gained.

        Args:
            tensor: [..., H], at least one dimension and one element, contiguous, on the CPU; not to be changed.
        """

    @abstractmethod
    def decompress(
        self, data: memoryview, side: memoryview, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """The tensor of `shape` and `dtype` that `compress` made `data` and `side` of, in memory of its own.

        They may come from anyone: hold their lengths against the shape before memory is allocated.

        Raises:
            ValueError: They do not fit the shape, or could not have been made by `compress`.
        """

    def pack(self, tensor: torch.Tensor) -> Payload:
        """What is to be sent for a tensor: coded, or raw where the codec does not take it.

        Raises:
            InvalidRequestError: For a complex, quantised, sparse or meta tensor.
        """
        tensor = sendable(tensor).detach()
        coded = self.compress(tensor) if tensor.dim() and tensor.numel() else None
        if coded is None:
            return raw_payload(tensor)
        data = coded.data if isinstance(coded.data, bytes) else memory_of(sendable(coded.data))
        return Payload(shape=tensor.shape, dtype=tensor.dtype, data=data, codec=self.name, side=coded.side)

    def unpack(self, payload: Payload, *, max_tensor_bytes: int = MAX_MESSAGE_BYTES) -> torch.Tensor:
        """The tensor of what was sent, raw or through this codec.

        Args:
            payload: What came.
            max_tensor_bytes: Largest tensor to make out of fewer bytes: a few can stand for many.

        Raises:
            InvalidRequestError: It was another codec, or the data do not fit the shape.
            MessageTooLargeError: The tensor would be larger than this side takes.
        """
        if not payload.codec:
            return raw_tensor(payload)
        self._check(payload, max_tensor_bytes)
        try:
            data, side = memoryview(payload.data), memoryview(payload.side)
            tensor = self.decompress(data, side, payload.shape, payload.dtype)
        except ValueError as error:
            raise InvalidRequestError(f"a {_described(payload)} cannot be read: {error}") from error
        if tensor.shape != payload.shape or tensor.dtype != payload.dtype:
            came = f"{tensor.dtype} {list(tensor.shape)}"
            raise RuntimeError(f"the codec {self.name!r} made {came} of a {_described(payload)}: mend its decompress")
        return tensor

    def _check(self, payload: Payload, max_tensor_bytes: int) -> None:
        if payload.codec != self.name:
            raise InvalidRequestError(
                f"a tensor came through the codec {payload.codec[:40]!r}: expected {self.name!r} or none"
            )
        if not payload.shape or not payload.num_elements:
            raise InvalidRequestError(f"a {_described(payload)}: numbers and empty tensors travel raw")
        if payload.tensor_bytes > max_tensor_bytes:
            raise MessageTooLargeError(
                f"a {_described(payload)} would have {payload.tensor_bytes} bytes, at most {max_tensor_bytes} "
                f"are taken; send it in pieces"
            )


def _described(payload: Payload) -> str:
    return f"tensor coded as {payload.codec!r}, {payload.dtype} {list(payload.shape)}"
