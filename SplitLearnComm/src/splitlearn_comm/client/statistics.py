"""What a client counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ClientStatistics:
    """Counts since the client was made, those of its sessions included."""

    messages_sent: int = 0
    """Calls, and messages of sessions, repeated ones included."""
    bytes_sent: int = 0
    """Bytes of messages sent, without what HTTP/2 adds."""
    bytes_received: int = 0
    """Bytes of messages received, without what HTTP/2 adds."""

    def count(self, sent: bytes, received: bytes) -> None:
        """Add one exchange. Threads may lose a count to each other, as with any plain counter."""
        self.messages_sent += 1
        self.bytes_sent += len(sent)
        self.bytes_received += len(received)
