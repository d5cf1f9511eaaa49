"""How much protobuf would make of a message, known before it is parsed.

A field takes two bytes on the wire and up to sixty in memory, so a message of many small ones becomes thirty times as
large when it is parsed. Ours have few fields, and large data in some of them.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.framing.locate import BYTES, FIXED32, FIXED64, VARINT, varint_at

SMALL_BYTES = 1 << 16
"""A message up to here is small whatever it becomes."""
MAX_ITEMS = 1 << 16
"""Fields, and numbers in lists, of one message and of all messages in it."""
_WIDTHS = {FIXED64: 8, FIXED32: 4}
_LENGTH_PREFIXED = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)


def check_items(descriptor: Descriptor, data: bytes) -> None:
    """Raise `InvalidRequestError` for a message of so many items that protobuf would take much more memory than it has.

    Args:
        descriptor: Of the type it is to be parsed as.
        data: The message; what is wrong with it otherwise is left to protobuf.
    """
    if len(data) > SMALL_BYTES and _num_items(descriptor, data, 0, len(data), MAX_ITEMS) > MAX_ITEMS:
        raise InvalidRequestError(
            f"a {descriptor.full_name} of more than {MAX_ITEMS} fields and numbers in {len(data)} bytes: expected few "
            f"of them, with the elements of tensors in their data"
        )


def _num_items(descriptor: Descriptor, data: bytes, at: int, end: int, most: int) -> int:
    """Items between two places; more than `most` if there are more, however many."""
    num_items = 0
    while at < end and num_items <= most:
        num_items += 1
        key, at = varint_at(data, at, end)
        kind = key & 7
        if kind == BYTES:
            length, at = varint_at(data, at, end)
            num_items += _num_inside(descriptor, key >> 3, data, at, min(at + length, end), most - num_items)
            at += length
        elif kind == VARINT:
            _, at = varint_at(data, at, end)
        elif kind in _WIDTHS:
            at += _WIDTHS[kind]
        else:
            # Groups, which nobody writes any more: parsed whole, each byte of them may be a field.
            return num_items + end - at
    return num_items


def _num_inside(descriptor: Descriptor, number: int, data: bytes, begin: int, end: int, most: int) -> int:
    field = descriptor.fields_by_number.get(number)
    if field is None or field.type in _LENGTH_PREFIXED:
        return 0
    if field.message_type is not None:
        return _num_items(field.message_type, data, begin, end, most)
    return end - begin
