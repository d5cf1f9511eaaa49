"""What a client or a server tells whoever watches it: calls, and the messages of sessions, as they end.

Nothing here depends on what watches: Prometheus, OpenTelemetry and the tests each derive from `Observer`. What is told
holds sizes, times and names of steps, never contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from splitlearn_comm.framing import steps
from splitlearn_comm.messages import Crop, Forward, Reorder, StartRecording
from splitlearn_comm.training import (
    BackwardPass,
    ForwardPass,
    FreeAdapter,
    PublishAdapter,
    ReadTraining,
    StartTraining,
    Update,
    WriteTraining,
)

Metadata = Sequence[tuple[str, str | bytes]]
"""What travels with a call, as gRPC takes it."""


_ACTIONS: dict[type, str] = {
    Forward: "forward",
    Reorder: "reorder",
    Crop: "crop",
    StartRecording: "start_recording",
    steps.Open: "open",
    steps.Close: "close",
    steps.Export: "export",
    steps.Import: "import",
    StartTraining: "start_training",
    ForwardPass: "forward_pass",
    BackwardPass: "backward_pass",
    Update: "update",
    ReadTraining: "read_training",
    WriteTraining: "write_training",
    PublishAdapter: "publish_adapter",
    FreeAdapter: "free_adapter",
}


def action_name(action: object) -> str:
    """What a message of a session is called in a `StepSummary`; `unknown` for None."""
    return _ACTIONS.get(type(action), "unknown")


class StepSummary(NamedTuple):
    """One message of a session and its answer, seen from one side."""

    action: str
    """`forward`, `reorder`, `crop`, `start_recording`; in a session of training `start_training`, `forward_pass`,
    `backward_pass`, `update`, `read_training`, `write_training`, `publish_adapter`, `free_adapter`; at a server also
    `open`, `close`, `export`, `import`, and `unknown` for what could not be read."""
    code: grpc.StatusCode
    """OK, or with what it was refused or failed."""
    step_id: int
    """Its number in the session; for traces and logs, not for labels of metrics."""
    seconds: float
    """At a client from its encoding until its answer was decoded, everything between included; at a server from its
    arrival until the answer was put together."""
    compute_s: float
    """Of these in the host, from when its turn came; 0 at a client without the option `timings`."""
    bytes_received: int
    """Of messages, without what HTTP/2 adds; pieces of a large tensor included."""
    bytes_sent: int
    """Of messages, without what HTTP/2 adds."""
    queue_s: float = 0.0
    """Of the seconds waiting at the host for its turn, behind others' steps; at a client, with `timings`, all from its
    arrival at the server until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSummary:
    """One call that ended, seen from one side."""

    code: grpc.StatusCode
    """OK, or with what it was refused or failed; at a server CANCELLED for a stream that was left, or broke, before its
    session was closed."""
    seconds: float
    """From its beginning to its end."""
    bytes_received: int = 0
    """Of a unary call's message; 0 for streams, whose messages are told of one by one."""
    bytes_sent: int = 0
    """Of a unary call's answer; 0 for streams."""


class ObservedCall:
    """Watches one call: a unary one, a stream at a server, or a session at a client. Override what you need.

    Called in the thread or on the event loop that makes or serves the call, in its way: be quick, and do not raise.
    """

    def metadata(self) -> Metadata:
        """At a client, asked for each connection: what to send along. Keys are lower-case."""
        return ()

    def on_step(self, step: StepSummary) -> None:
        """A message of the session was answered."""

    def on_end(self, summary: CallSummary) -> None:
        """The call, or the session, ended. Once; a step that was running when its stream broke is told of after it."""


class Observer:
    """Watches a client or a server (`observer=`). Override what you need; it may be called from several threads."""

    def on_call(self, method: str, metadata: Metadata) -> ObservedCall:
        """A call begins.

        Args:
            method: As gRPC writes it, `/package.Service/Method`; at a server one that is served.
            metadata: At a server what the client sent, tokens included; empty at a client.

        Returns:
            What watches this call.
        """
        return ObservedCall()

    def on_session_opened(self) -> None:
        """A server has opened a session."""

    def on_session_closed(self, reason: str) -> None:
        """A server has closed a session.

        Args:
            reason: It was `closed` by its client, it `expired` or `failed`, or the server `stopped`.
        """


class Together(Observer):
    """Several observers as one, in this order.

    Args:
        *observers: Each is told everything.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_call(self, method: str, metadata: Metadata) -> ObservedCall:
        """Tell each."""
        if len(self._observers) == 1:
            return self._observers[0].on_call(method, metadata)
        return _CallTogether([observer.on_call(method, metadata) for observer in self._observers])

    def on_session_opened(self) -> None:
        """Tell each."""
        for observer in self._observers:
            observer.on_session_opened()

    def on_session_closed(self, reason: str) -> None:
        """Tell each."""
        for observer in self._observers:
            observer.on_session_closed(reason)


class _CallTogether(ObservedCall):
    def __init__(self, calls: list[ObservedCall]) -> None:
        self._calls = calls

    def metadata(self) -> Metadata:
        return [pair for call in self._calls for pair in call.metadata()]

    def on_step(self, step: StepSummary) -> None:
        for call in self._calls:
            call.on_step(step)

    def on_end(self, summary: CallSummary) -> None:
        for call in self._calls:
            call.on_end(summary)
