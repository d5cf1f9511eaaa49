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

    retries: int = 0
    """Times a session's connection broke, or could not be made or was refused for now, and was tried again."""
    failovers: int = 0
    """Sessions that were rebuilt at a server, from what they had sent, because they were lost."""
    replayed_steps: int = 0
    """Steps that were sent again for that."""
    moves: int = 0
    """Sessions that left a draining server with their state."""

    def count_sent(self, num_bytes: int) -> None:
        """Add one message sent. Threads may lose a count to each other, as with any plain counter."""
        self.messages_sent += 1
        self.bytes_sent += num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBreakdown:
    """Where the time of one step went."""

    total_s: float
    """From the client's encoding of the step until its answer was decoded."""
    queue_s: float
    """At the server, from the arrival of the message until its turn in the host came."""
    compute_s: float
    """In the server's host, from when its turn came; of a prompt in pieces, with what runs in between."""
    serialise_s: float
    """At the server, making the answer's bytes."""
    bytes_sent: int
    """Of the step's message, without what HTTP/2 adds."""
    bytes_received: int
    """Of its answer, without what HTTP/2 adds."""

    @property
    def network_s(self) -> float:
        """All that did not happen at the server: the wire, gRPC's threads, encoding and decoding here."""
        return self.total_s - self.queue_s - self.compute_s - self.serialise_s
