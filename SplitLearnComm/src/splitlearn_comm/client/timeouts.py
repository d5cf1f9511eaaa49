"""How long each kind of call may take."""

from __future__ import annotations

from dataclasses import dataclass, fields

from splitlearn_comm.checks import check_number


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds that a call of each kind may take, all its attempts together; all are greater than zero.

    What is None is what the client's `timeout_s` says, or for the last two its `connect_timeout_s`.
    """

    compute_s: float | None = None
    """A stateless call."""
    step_s: float | None = None
    """A step of a session."""
    forward_s: float | None = None
    """A forward pass of training."""
    backward_s: float | None = None
    """A backward pass of training."""
    update_s: float | None = None
    """A step of the optimizer, and whatever else a session of training asks for."""
    control_s: float | None = None
    """Asking for health or information."""
    connect_s: float | None = None
    """Opening a session."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None:
                check_number(f"timeouts.{item.name}", value)
