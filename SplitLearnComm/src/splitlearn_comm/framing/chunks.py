"""Tensors too large for one message: sent in pieces that are copied while the ones before them travel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import field_header, memory_of
from splitlearn_comm.errors import InvalidRequestError, MessageTooLargeError

CHUNK_BYTES = 1 << 20
"""Data of a tensor in one message. At 1 MiB copying a piece hides behind the sending of the one before; much smaller
ones cost more in messages than they gain."""


@dataclass(frozen=True, slots=True)
class ChunkedMessage:
    """A message whose tensor goes ahead of it in chunks."""

    data: memoryview
    """The tensor's bytes; the view keeps them alive."""
    last: bytes
    """The message itself, without them."""
    number: int
    """Field number of a chunk in this kind of message."""
    chunk_bytes: int
    """Largest piece."""

    def __len__(self) -> int:
        return len(self.data) + len(self.last)

    def __iter__(self) -> Iterator[bytes]:
        """The messages to send, each made when it is asked for: one piece at a time is in memory."""
        total_bytes = len(self.data)
        for offset in range(0, total_bytes, self.chunk_bytes):
            piece = self.data[offset : offset + self.chunk_bytes]
            fields = pb.TensorChunk(offset=offset, total_bytes=total_bytes).SerializeToString()
            before = fields + field_header(pb.TensorChunk.DATA_FIELD_NUMBER, len(piece))
            yield b"".join((field_header(self.number, len(before) + len(piece)), before, piece))
        yield self.last


Outgoing = bytes | ChunkedMessage
"""A message to send: in one piece, or with its tensor in chunks ahead of it. `len` is its size in bytes."""


def messages_of(message: Outgoing) -> Iterator[bytes]:
    """The messages that a message to send consists of."""
    return iter((message,)) if isinstance(message, bytes) else iter(message)


def whole(message: Outgoing) -> bytes:
    """A message that was packed without chunks."""
    assert isinstance(message, bytes), "a call of its own takes no chunks"
    return message


class ChunkBuffer:
    """Puts the chunks of one tensor together, in memory that becomes the tensor's own.

    Args:
        max_bytes: Largest tensor taken.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data: torch.Tensor | None = None
        self._filled_bytes = 0

    def add(self, offset: int, total_bytes: int, piece: memoryview) -> None:
        """Take a chunk.

        Raises:
            MessageTooLargeError: The whole would be larger than what is taken. Nothing is allocated.
            InvalidRequestError: The chunk belongs nowhere: it leaves a gap, goes beyond the whole, or is of another.
        """
        if total_bytes > self._max_bytes:
            raise MessageTooLargeError(
                f"a tensor of {total_bytes} bytes comes in chunks, at most {self._max_bytes} are taken; "
                f"send a smaller batch, or raise max_message_bytes on both sides"
            )
        if self._data is None:
            # Not filled with zeros: pages come when they are written to, so that an announcement alone takes none.
            self._data = torch.empty(total_bytes, dtype=torch.uint8)
        if len(self._data) != total_bytes or offset > self._filled_bytes or offset + len(piece) > total_bytes:
            raise InvalidRequestError(
                f"a chunk out of place: {len(piece)} bytes at {offset} of {total_bytes} came, "
                f"with {self._filled_bytes} of {len(self._data)} there"
            )
        memory_of(self._data)[offset : offset + len(piece)] = piece
        self._filled_bytes = max(self._filled_bytes, offset + len(piece))

    def take(self, num_bytes: int) -> torch.Tensor:
        """The whole, uint8 [N], for the message that names it; the buffer is empty then.

        Raises:
            InvalidRequestError: Another number of bytes came.
        """
        data, filled_bytes = self._data, self._filled_bytes
        self._data, self._filled_bytes = None, 0
        if data is None or not filled_bytes == len(data) == num_bytes:
            came = f"{filled_bytes} of {0 if data is None else len(data)}"
            raise InvalidRequestError(f"a tensor in chunks is not whole: expected {num_bytes} bytes, came {came}")
        return data
