"""What a server counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ServerStatistics:
    """Counts since the server was made, and what is open now."""

    computes: int = 0
    """Stateless calls answered."""
    sessions_open: int = 0
    """Sessions open now, detached ones included."""
    sessions_opened: int = 0
    """Sessions ever opened."""
    sessions_expired: int = 0
    """Sessions closed because nobody used them or came back to them."""
    steps: int = 0
    """Steps done."""
    replays: int = 0
    """Steps that were repeated and answered from memory."""
    refusals: int = 0
    """Calls and steps answered with an error."""
    bytes_received: int = 0
    """Bytes of messages received, without what HTTP/2 adds."""
    bytes_sent: int = 0
    """Bytes of messages sent, without what HTTP/2 adds."""
