"""What can be set on a server."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a `ManagedServer`, checked once.

    Raises:
        ValueError: a value of the wrong kind, or a number that is not positive.
        TypeError: an unknown key.
    """

    max_sessions: int = 64
    """Sessions open at once; one more is refused with RESOURCE_EXHAUSTED."""
    idle_session_timeout_s: float = 600.0
    """A session without a step for so long is freed."""
    detached_session_timeout_s: float = 30.0
    """A session whose client's stream broke is freed after so long, so that the client may come back to it."""
    max_message_bytes: int = 256 * 1024 * 1024
    """Largest message taken or sent; 256 MiB hold 10,000 positions of width 4,096 in float32 and some more."""
    drain_timeout_s: float = 10.0
    """How long steps in flight may go on after SIGINT or SIGTERM."""
    refuse_nonfinite: bool = True
    """Refuse hidden states that hold NaN or Inf."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, bool):
                if not isinstance(value, bool):
                    raise ValueError(f"{item.name} must be True or False; got {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{item.name} must be a number greater than zero; got {value!r}")
