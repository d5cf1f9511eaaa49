"""Sessions whose clients do nothing while their server stops: who is called to come for them, and waited for.

Pure: no sockets, no clock; times are seconds of whatever clock the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

IDLE_S = 0.1
"""A client that has sent nothing for so long is between steps; one that is at work moves with its next."""


class Decision(Enum):
    """What to do about a stream on which nothing is being answered."""

    WAIT = "it is at work, and moves or is saved by itself"
    CALL = "end its stream, so that its client comes back and takes the session with it"
    END = "it was waited for, has not moved and does nothing"


class Handover:
    """Whom a server that stops has called, and for whom it still waits.

    A client that does nothing cannot be told anything over its stream: nobody reads. That its stream ends it notices
    at once, comes back over a new one and takes the state along. Each session is called once.

    Args:
        patience_s: How long one is waited for.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._called: set[str] = set()
        self._awaited: dict[str, tuple[int | None, float]] = {}

    def __repr__(self) -> str:
        return f"<{len(self._called)} sessions called, {len(self._awaited)} awaited>"

    def decide(self, session_id: str, idle_s: float, *, is_training: bool = False) -> Decision:
        """What to do about a session whose stream is silent.

        Args:
            session_id: Its name; empty where none is open on the stream.
            idle_s: Seconds since its last message came.
            is_training: Whether it trains: its client can only save it here, and hears so with its next answer.
        """
        if not session_id:
            return Decision.END
        if session_id in self._called or is_training:
            return Decision.END if idle_s > self._patience_s else Decision.WAIT
        return Decision.CALL if idle_s > IDLE_S else Decision.WAIT

    def called(self, session_id: str, attachment: int | None, now_s: float) -> None:
        """Note that a session was called from the stream of this attachment."""
        self._called.add(session_id)
        self._awaited[session_id] = attachment, now_s + self._patience_s

    def is_waiting(self, attachment_of: Callable[[str], int | None], now_s: float) -> bool:
        """Whether there is a session whose client was called, has not come back, and may still.

        Args:
            attachment_of: The number of the stream that a session was attached to last.
            now_s: The time.
        """
        self._awaited = {
            session_id: (attachment, until_s)
            for session_id, (attachment, until_s) in self._awaited.items()
            if attachment_of(session_id) == attachment and now_s < until_s
        }
        return bool(self._awaited)
