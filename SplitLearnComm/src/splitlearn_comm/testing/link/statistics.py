"""What a link counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LinkStatistics:
    """Counts since the link was made, and what is open now."""

    connections: int
    """Connections ever taken."""
    connections_open: int
    """Connections open now."""
    bytes_to_server: int
    """Bytes delivered to the server."""
    bytes_to_client: int
    """Bytes delivered to clients."""
    cuts: int
    """How often the link was cut, asked for or after the bytes it was to let through."""
