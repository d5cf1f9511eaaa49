"""Messages around one large tensor, put together with a single copy of its elements.

Protobuf copies a bytes field when it is set, again when the message is put into another, and again when that is
serialised. The bytes made here are the same message with the large field last, which any protobuf reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import Payload, encode_payload, field_header, memory_of, sendable
from splitlearn_comm.framing.chunks import ChunkedMessage, Outgoing

_DATA = pb.TensorData.DATA_FIELD_NUMBER
_PADDING = pb.TensorData.PADDING_FIELD_NUMBER
_ALIGNMENT = 16
VIEWED_BYTES = 1 << 16
"""Up to here the receiver copies the elements: that costs less than looking after a view of the message."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How tensors are put into the messages of a stream."""

    codec: str = ""
    """Name of the codec; empty: raw."""
    chunk_bytes: int = 0
    """Data that goes into one message at most; what is larger goes in chunks. 0: no chunks."""


PLAIN = Packing()
"""Raw, in one message."""


def with_tensor(
    fields: bytes,
    path: tuple[int, ...],
    tensor: torch.Tensor,
    beside: bytes = b"",
    packing: Packing = PLAIN,
    chunk_number: int = 0,
) -> Outgoing:
    """A serialised message with a tensor in it.

    Args:
        fields: The message without the tensor, serialised.
        path: Field numbers that lead from the message to the tensor: one, or two if it is in a message inside.
        tensor: Of any shape, strides and device.
        beside: The other fields of the message inside, serialised.
        packing: Codec and chunks.
        chunk_number: Field number of a chunk in this kind of message.

    Raises:
        InvalidRequestError: For a tensor that cannot be sent.
    """
    if packing.codec:
        payload = encode_payload(tensor, packing.codec)
        header, data = payload.fields().SerializeToString(), memoryview(payload.data)
    else:
        tensor = sendable(tensor)
        header, data = _raw_header(tensor.shape, tensor.dtype), memory_of(tensor)
    if packing.chunk_bytes and len(data) > packing.chunk_bytes:
        header += pb.TensorData(chunked_bytes=len(data)).SerializeToString()
        last = b"".join((fields, _before(path, header, 0, len(beside)), beside))
        return ChunkedMessage(data, last, chunk_number, packing.chunk_bytes)
    if len(data) > VIEWED_BYTES and not packing.codec:
        header = _aligned(path, header, len(data), len(beside), len(fields) % _ALIGNMENT)
    # With a codec no header is like another: remembering them would push out those that are.
    before = (_before.__wrapped__ if packing.codec else _before)(path, header, len(data), len(beside))
    return b"".join((fields, before, data, beside))


@lru_cache(maxsize=1024)
def _raw_header(shape: torch.Size, dtype: torch.dtype) -> bytes:
    return Payload(shape=tuple(shape), dtype=dtype, data=b"").fields().SerializeToString()


@lru_cache(maxsize=1024)
def _before(path: tuple[int, ...], header: bytes, num_bytes: int, beside_bytes: int) -> bytes:
    """All that stands between the fields of the message and the elements; the same for every token of a generation."""
    before = header + field_header(_DATA, num_bytes) if num_bytes else header
    for depth, number in reversed(tuple(enumerate(path))):
        inside_bytes = len(before) + num_bytes + (beside_bytes if depth == 0 and len(path) > 1 else 0)
        before = field_header(number, inside_bytes) + before
    return before


@lru_cache(maxsize=1024)
def _aligned(path: tuple[int, ...], header: bytes, num_bytes: int, beside_bytes: int, behind: int) -> bytes:
    """The header with as much padding as brings the elements to a multiple of the alignment.

    Args:
        behind: Bytes before all this, beyond a multiple of the alignment.
    """
    for missing in range(_ALIGNMENT):
        padded = header + field_header(_PADDING, missing) + bytes(missing)
        if (behind + len(_before(path, padded, num_bytes, beside_bytes))) % _ALIGNMENT == 0:
            return padded
    return header  # the lengths around it skip a digit just there: the receiver copies
