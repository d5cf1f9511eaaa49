"""Finding a large field inside a serialised message without parsing what is around it.

Protobuf copies a bytes field when it parses a message and again when the field is read. The elements of a tensor are
therefore found by their place in the buffer, and protobuf sees only what is left. The encoding is the one described in
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_CONTINUES = 0x80
_MAX_VARINT_BYTES = 10
MAX_FIELDS = 64
"""Fields looked at in one message: ours have a dozen, and a message of millions is no reason to hold up all others."""


class Span(NamedTuple):
    """Where a field lies in a buffer."""

    field: int
    """Its first byte, that of its number."""
    begin: int
    """First byte of its contents."""
    end: int
    """One past its last byte."""


class Located(NamedTuple):
    """A bytes field inside messages inside messages."""

    around: tuple[bytes, ...]
    """Of each message on the way, the outermost first: the serialised message without the next one."""
    field: int
    """First byte of the outermost field in the buffer."""
    begin: int
    """First byte of the innermost field's contents."""
    end: int
    """One past the last."""


def locate(buffer: bytes, path: tuple[int, ...]) -> Located | None:
    """Find the bytes field that a path of field numbers leads to.

    Returns:
        None if the path leads nowhere, or a field on it comes more than once, or the bytes are no message: protobuf
        then says what is in them.
    """
    around: list[bytes] = []
    begin, end, field = 0, len(buffer), None
    for number in path:
        span = only_field(buffer, number, begin, end)
        if span is None:
            return None
        field = span.field if field is None else field
        around.append(buffer[begin : span.field] + buffer[span.end : end])
        begin, end = span.begin, span.end
    return Located(tuple(around), field or 0, begin, end)


def only_field(buffer: bytes, number: int, begin: int, end: int) -> Span | None:
    """Find the one field of bytes with this number in a message; None if there is none, or another than one, or if the
    message has more than `MAX_FIELDS`."""
    wanted = number << 3 | BYTES
    found = None
    at = begin
    for _ in range(MAX_FIELDS):
        if at >= end:
            break
        field = at
        key, at = varint_at(buffer, at, end)
        if key & 7 == BYTES:
            length, at = varint_at(buffer, at, end)
            if key == wanted:
                if found is not None:
                    return None
                found = Span(field, at, at + length)
            at += length
        else:
            at = _behind_number(buffer, key & 7, at, end)
    # Beyond the end too, when a length or a number was a lie.
    return found if at == end else None


def _behind_number(buffer: bytes, kind: int, at: int, end: int) -> int:
    if kind == VARINT:
        return varint_at(buffer, at, end)[1]
    if kind == FIXED64:
        return at + 8
    return at + 4 if kind == FIXED32 else end + 1


def varint_at(buffer: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and the place behind it; a place beyond the end if it does not stop before that."""
    value = shift = 0
    for place in range(at, min(at + _MAX_VARINT_BYTES, end)):
        digit = buffer[place]
        value |= (digit & 0x7F) << shift
        if digit < _CONTINUES:
            return value, place + 1
        shift += 7
    return 0, end + 1
