"""Which answer a message of a session waits for. Pure.

A network that repeats messages makes two answers to one; the second is nobody's, and must not be taken for the answer
to the message behind it.
"""

from __future__ import annotations

from enum import Enum, auto

from splitlearn_comm.framing.steps import Answer


class Awaited(Enum):
    """What answers a message, beside a refusal."""

    STEP = auto()
    """That of a step, or of the close behind it."""
    OPENED = auto()
    """That of an open: the first to come over a stream, whatever it says."""
    STATE = auto()
    """That of an export: a state."""
    IMPORTED = auto()
    """That of an import: anything but that of the open before it."""


def is_stale(answer: Answer, step_id: int, awaited: Awaited = Awaited.STEP) -> bool:
    """Whether an answer belongs to a message before the one that waits.

    Args:
        answer: What came.
        step_id: Number of the message that waits.
        awaited: What answers it.
    """
    if answer.error is not None:
        return 0 < answer.step_id < step_id
    if awaited is Awaited.STEP:
        return answer.opened is not None or answer.step_id < step_id
    if awaited is Awaited.STATE:
        return answer.state is None or answer.step_id < step_id
    return awaited is Awaited.IMPORTED and answer.opened is not None
