"""The tensor in a message: found, checked, and read where it lies."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import Payload, decode_payload, memory_of
from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.framing.assembly import VIEWED_BYTES
from splitlearn_comm.framing.fields import parse
from splitlearn_comm.framing.locate import locate
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES

_DATA = pb.TensorData.DATA_FIELD_NUMBER
_CACHED_HEADER_BYTES = 128


class Taken(NamedTuple):
    """A message taken apart."""

    outer: bytes
    """What is around the outermost field on the way to the tensor, serialised."""
    beside: bytes
    """What is beside the tensor in the message inside, serialised; empty where the path has one field."""
    tensor: torch.Tensor


class _Header(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    num_bytes: int


class TensorTaker:
    """Takes the tensors out of the messages of one kind, their elements not copied where that pays.

    The messages of a generation differ in two small numbers and the elements. So what stood between those in the last
    message is looked for first.

    Args:
        path: Field numbers that lead to the tensor: one, or two if it is in a message inside.
        max_tensor_bytes: Largest tensor to make out of fewer bytes.
    """

    def __init__(self, path: tuple[int, ...], max_tensor_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._path = (*path, _DATA)
        self._max_tensor_bytes = max_tensor_bytes
        self._before = b""
        self._header: _Header | None = None

    def take(self, buffer: bytes, codecs: Collection[str] = ()) -> Taken | None:
        """Take a message apart.

        Args:
            buffer: The serialised message.
            codecs: Names of the codecs that were agreed on.

        Returns:
            None if there is no data of a tensor there, or not once: protobuf says what is in the message then.

        Raises:
            InvalidRequestError: Dtype, shape and data do not agree.
            UnsupportedOperationError: It came through a codec that was not agreed on.
            MessageTooLargeError: The tensor would be larger than this side takes.
        """
        return self._take_alike(buffer) or self._take(buffer, codecs)

    def _take_alike(self, buffer: bytes) -> Taken | None:
        if self._header is None:
            return None
        # The rest of the message is exactly what is searched for and the elements: nothing can stand behind them.
        field = len(buffer) - self._header.num_bytes - len(self._before)
        if field < 0 or not buffer.startswith(self._before, field):
            return None
        return Taken(buffer[:field], b"", _read(buffer, field + len(self._before), self._header))

    def _take(self, buffer: bytes, codecs: Collection[str]) -> Taken | None:
        located = locate(buffer, self._path)
        if located is None:
            return None
        *outside, fields = located.around
        header = _header(fields) if len(fields) <= _CACHED_HEADER_BYTES else None
        if header is None:
            payload = Payload.of(parse(pb.TensorData, fields), memoryview(buffer)[located.begin : located.end])
            tensor = decode_payload(payload, codecs, max_tensor_bytes=self._max_tensor_bytes)
        elif header.num_bytes != located.end - located.begin:
            raise _wrong_length(header, located.end - located.begin)
        else:
            tensor = _read(buffer, located.begin, header)
        is_alone = located.end == len(buffer) and not any(outside[1:])
        if header is not None and is_alone and header.num_bytes <= VIEWED_BYTES:
            self._before, self._header = buffer[located.field : located.begin], header
        return Taken(outside[0], outside[1] if len(outside) > 1 else b"", tensor)


def tensor_of(
    message: pb.TensorData,
    data: torch.Tensor | None = None,
    codecs: Collection[str] = (),
    max_tensor_bytes: int = MAX_MESSAGE_BYTES,
) -> torch.Tensor:
    """The tensor of a parsed message.

    Args:
        message: As it came.
        data: What came in chunks before it, uint8 [N]; None if nothing did.
        codecs: Names of the codecs that were agreed on.
        max_tensor_bytes: Largest tensor to make out of fewer bytes.

    Raises:
        InvalidRequestError: Dtype, shape and data do not agree.
        UnsupportedOperationError: It came through a codec that was not agreed on.
        MessageTooLargeError: The tensor would be larger than this side takes.
    """
    payload = Payload.of(message, message.data if data is None else memory_of(data))
    if data is not None and not payload.codec and payload.dtype is not torch.bool:
        header = _Header(payload.dtype, payload.shape, payload.tensor_bytes)
        if header.num_bytes != len(data):
            raise _wrong_length(header, len(data))
        # The chunks were put together in memory of their own: it becomes the tensor's.
        return data.view(header.dtype).view(header.shape)
    return decode_payload(payload, codecs, max_tensor_bytes=max_tensor_bytes)


@lru_cache(maxsize=1024)
def _header(fields: bytes) -> _Header | None:
    """Dtype and shape of a raw tensor, the same for every token of a generation; None if it needs more than a read."""
    message = parse(pb.TensorData, fields)
    if message.codec or message.side or message.chunked_bytes or message.dtype == pb.DTYPE_BOOL:
        return None
    payload = Payload.of(message, b"")
    return _Header(payload.dtype, payload.shape, payload.tensor_bytes)


def _read(buffer: bytes, begin: int, header: _Header) -> torch.Tensor:
    if not header.num_bytes:
        return torch.empty(header.shape, dtype=header.dtype)
    address = _address_of(buffer) + begin if header.num_bytes > VIEWED_BYTES else 0
    if not address or address % header.dtype.itemsize:
        storage = bytearray(memoryview(buffer)[begin : begin + header.num_bytes])
        return torch.frombuffer(storage, dtype=header.dtype).view(header.shape)
    elements = (ctypes.c_char * header.num_bytes).from_address(address)
    # Nobody but this tensor holds the message, so writing to it disturbs no one.
    elements.owner = buffer  # type: ignore[attr-defined]
    return torch.frombuffer(elements, dtype=header.dtype).view(header.shape)


def _address_of(buffer: bytes) -> int:
    """Where the contents of a bytes object lie; ctypes gives a pointer to them, not to a copy."""
    address = ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value
    assert address is not None
    return address


def _wrong_length(header: _Header, num_bytes: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"tensor data of the wrong length: {header.dtype} {list(header.shape)} needs {header.num_bytes} bytes, "
        f"came {num_bytes}; send the elements contiguous and little-endian"
    )
