"""`TensorData` to bytes with one copy of its data, and back with none.

Protobuf copies a bytes field when it is set and again when it is serialised; on receipt when it is parsed and again
when it is read. So the data are put behind the other fields by hand, and cut out before protobuf sees the rest. The
bytes are the same message either way, which any protobuf reads and writes.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec.payload import Payload
from splitlearn_comm.errors import InvalidRequestError

_DATA = pb.TensorData.DATA_FIELD_NUMBER
_BYTES = 2
_MAX_VARINT_BYTES = 10


def to_bytes(payload: Payload) -> bytes:
    """The serialised `TensorData`."""
    fields = payload.fields().SerializeToString()
    return b"".join((fields, field_header(_DATA, len(payload.data)), payload.data))


def from_bytes(buffer: bytes | memoryview) -> Payload:
    """What a serialised `TensorData` holds; its data are a view of the buffer.

    Raises:
        InvalidRequestError: The bytes are no such message, the dtype is unknown or the shape impossible.
    """
    try:
        rest, data = cut_out(memoryview(buffer), _DATA)
        return Payload.of(pb.TensorData.FromString(rest), data)
    except (ValueError, DecodeError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(f"{len(buffer)} bytes came that are no TensorData: {error}") from error


def field_header(number: int, num_bytes: int) -> bytes:
    """What stands before the contents of a field of bytes: its number and its length."""
    return _varint(number << 3 | _BYTES) + _varint(num_bytes)


def cut_out(message: memoryview, number: int) -> tuple[bytes, memoryview]:
    """Take a bytes field (or message inside) out of a serialised message.

    Returns:
        The message without the field, serialised; and a view of the field's contents, empty where there is none. Of
        several the last counts, as protobuf has it for bytes.

    Raises:
        ValueError: The bytes are no message.
    """
    kept, contents, position, kept_from = [], message[:0], 0, 0
    while position < len(message):
        key, start = _read_varint(message, position)
        end, begin = _end_of_field(message, key & 7, start)
        if key == number << 3 | _BYTES:
            contents = message[begin:end]
            kept.append(message[kept_from:position])
            kept_from = end
        position = end
    kept.append(message[kept_from:])
    return b"".join(kept), contents


def _end_of_field(message: memoryview, kind: int, start: int) -> tuple[int, int]:
    """Where a field ends, and where its contents begin."""
    begin = start
    match kind:
        case 0:
            end = _read_varint(message, start)[1]
        case 1:
            end = start + 8
        case 2:
            length, begin = _read_varint(message, start)
            end = begin + length
        case 5:
            end = start + 4
        case _:
            raise ValueError(f"a field of wire type {kind} at byte {start}")
    if end > len(message):
        raise ValueError(f"a field ends at byte {end} of {len(message)}")
    return end, begin


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number, and the position behind it."""
    value = 0
    for index, digit in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (digit & 0x7F) << 7 * index
        if digit < 0x80:
            return value, position + index + 1
    raise ValueError(f"a number without an end at byte {position}")


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
