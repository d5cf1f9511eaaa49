"""A few hidden states as a frame's payload, with as little work as can be: most steps are one token.

Comm's messages say more, and cost a model's process and the serving process 60 microseconds a step with warm caches and
four times that with cold ones, of which this saves most.

B rows, T tokens, H hidden size.
"""

import math
import struct

import torch

from splitlearn_comm.codec import DTYPES, ENUMS, memory_of, sendable

_FIELDS = struct.Struct("<B7xQQQd")
"""Dtype by its number on the wire, B, T, H, until when it is of use; before the elements, which stay aligned."""
MAX_BYTES = 1 << 16
"""Beyond, the elements are worth a message that they need not be copied out of."""


def packed(tensor_BTH: torch.Tensor, due_s: float = math.inf) -> bytes | None:
    """Return the payload for a tensor, None for one that is too large or has other than three dimensions.

    Args:
        tensor_BTH: the hidden states.
        due_s: until when somebody waits for what is asked with them, on `time.monotonic`, which all processes of a
            machine share; infinity where that is not told.

    Raises:
        InvalidRequestError: (of splitlearn_comm) it cannot be sent.
    """
    if tensor_BTH.dim() != 3 or tensor_BTH.nbytes > MAX_BYTES:
        return None
    ready_BTH = sendable(tensor_BTH)
    return _FIELDS.pack(ENUMS[ready_BTH.dtype], *ready_BTH.shape, due_s) + memory_of(ready_BTH)


def unpacked(payload: bytes) -> torch.Tensor:
    """Return the tensor [B, T, H] in a payload, in memory of its own."""
    number, *shape_BTH, _ = _FIELDS.unpack_from(payload)
    if len(payload) == _FIELDS.size:
        return torch.empty(shape_BTH, dtype=DTYPES[number])
    return torch.frombuffer(bytearray(payload), dtype=DTYPES[number], offset=_FIELDS.size).view(shape_BTH)


def due_of(payload: bytes) -> float:
    """Return until when somebody waits for what is asked with a payload."""
    due_s: float = _FIELDS.unpack_from(payload)[-1]
    return due_s
