"""How good a link is, in one direction."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LinkQuality:
    """What one direction of a link does to bytes. The default does nothing to them."""

    latency_s: float = 0.0
    """How long each byte is underway, one way."""
    jitter_s: float = 0.0
    """How much longer than that it may be, drawn evenly from [0, jitter_s]. Bytes keep their order."""
    bytes_per_s: float = math.inf
    """Bandwidth, shared by all connections."""

    def __post_init__(self) -> None:
        for name in ("latency_s", "jitter_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more seconds, came {value}; for a link that hangs use stall()")
        if not self.bytes_per_s > 0:
            raise ValueError(
                f"bytes_per_s must be greater than 0, came {self.bytes_per_s}; for a link that hangs use stall()"
            )
