"""The one piece of protobuf's encoding that is written by hand: what stands before the contents of a field of bytes."""

from __future__ import annotations

_BYTES = 2


def field_header(number: int, num_bytes: int) -> bytes:
    """Number and length of a field of bytes, or of a message inside, whose contents follow."""
    return _varint(number << 3 | _BYTES) + _varint(num_bytes)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
