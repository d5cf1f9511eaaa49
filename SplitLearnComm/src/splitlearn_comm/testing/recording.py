"""An observer that keeps what it is told."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from splitlearn_comm.observer import CallSummary, Metadata, ObservedCall, Observer, StepSummary


@dataclass
class RecordedCall(ObservedCall):
    """What was told of one call."""

    method: str
    """As gRPC writes it."""
    received: Metadata
    """What its client sent along."""
    sends: Metadata
    """What is sent along with it."""
    steps: list[StepSummary] = field(default_factory=list)
    """The messages of its session up to now."""
    summary: CallSummary | None = None
    """How it ended; None until then."""

    def metadata(self) -> Metadata:
        """What was to be sent."""
        return self.sends

    def on_step(self, step: StepSummary) -> None:
        """Keep it."""
        self.steps.append(step)

    def on_end(self, summary: CallSummary) -> None:
        """Keep it. Raises `AssertionError` the second time."""
        assert self.summary is None, f"{self.method} ended twice"
        self.summary = summary


class RecordingObserver(Observer):
    """Keeps calls, steps and sessions, for tests to look at.

    Args:
        sends: What a client is to send along with each call.
    """

    def __init__(self, sends: Metadata = ()) -> None:
        self.calls: list[RecordedCall] = []
        """Those that began, the oldest first."""
        self.num_opened = 0
        """Sessions that were opened."""
        self.closed: list[str] = []
        """Why sessions were closed, in this order."""
        self._sends = sends
        self._lock = threading.Lock()

    @property
    def steps(self) -> list[StepSummary]:
        """Of all calls."""
        return [step for call in self.calls for step in call.steps]

    def on_call(self, method: str, metadata: Metadata) -> RecordedCall:
        """Begin to record a call."""
        call = RecordedCall(method, metadata, self._sends)
        with self._lock:
            self.calls.append(call)
        return call

    def on_session_opened(self) -> None:
        """Count it."""
        with self._lock:
            self.num_opened += 1

    def on_session_closed(self, reason: str) -> None:
        """Keep the reason."""
        with self._lock:
            self.closed.append(reason)
