"""Metrics of a server, for Prometheus.

Base units, the prefix `splitlearn_`, and no label that clients could fill: never the name of a session, of a client or
of a call.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from splitlearn_comm import CallSummary, ObservedCall, Observer, StepSummary
from splitlearn_comm.observer import Metadata

TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
"""For the time of a token; vLLM's, so that dashboards of both can be laid side by side."""
# fmt: off
HOP_BUCKETS_S = (
    0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013,
    0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1, 2, 5,
    10, 20, 50, 100,
)
# fmt: on
"""For calls and for what a server adds to a step; those of gRPC's own metrics (gRFC A66)."""


class PrometheusObserver(Observer):
    """Counts what a server does (`observer=`), in a registry of its own.

    Args:
        registry: Where the metrics are kept; None for a new one.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        """What an endpoint gives out."""
        self._calls = self._counter("calls", "Calls that ended; a session's stream is one.", "method", "code")
        self._call_seconds = self._histogram(
            "call_seconds",
            "From the beginning of a call to its end; of a stream, all of its steps.",
            HOP_BUCKETS_S,
            "method",
        )
        self._steps = self._counter("steps", "Messages of sessions that were answered.", "action", "code")
        self._step_seconds = self._histogram(
            "step_seconds", "From the arrival of a message of a session until its answer.", TOKEN_BUCKETS_S, "action"
        )
        self._overhead_seconds = self._histogram(
            "step_overhead_seconds", "Of that, all that did not happen in the model.", HOP_BUCKETS_S, "action"
        )
        self._received = self._counter("received_bytes", "Bytes of messages received.")
        self._sent = self._counter("sent_bytes", "Bytes of messages sent.")
        self._sessions = Gauge("splitlearn_sessions", "Sessions open now.", registry=self.registry)
        self._opened = self._counter("sessions_opened", "Sessions that were opened.")
        self._closed = self._counter("sessions_closed", "Sessions that were closed.", "reason")

    def on_call(self, method: str, metadata: Metadata) -> ObservedCall:
        """Watch one call."""
        return _Counted(self, method)

    def on_session_opened(self) -> None:
        """Count it."""
        self._sessions.inc()
        self._opened.inc()

    def on_session_closed(self, reason: str) -> None:
        """Count it."""
        self._sessions.dec()
        self._closed.labels(reason).inc()

    def count_call(self, method: str, summary: CallSummary) -> None:
        """Count a call that ended."""
        self._calls.labels(method, summary.code.name).inc()
        self._call_seconds.labels(method).observe(summary.seconds)
        self._received.inc(summary.bytes_received)
        self._sent.inc(summary.bytes_sent)

    def count_step(self, step: StepSummary) -> None:
        """Count a message of a session."""
        self._steps.labels(step.action, step.code.name).inc()
        self._step_seconds.labels(step.action).observe(step.seconds)
        self._overhead_seconds.labels(step.action).observe(step.seconds - step.compute_s)
        self._received.inc(step.bytes_received)
        self._sent.inc(step.bytes_sent)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"splitlearn_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"splitlearn_{name}", meaning, labels, buckets=buckets, registry=self.registry)


class _Counted(ObservedCall):
    def __init__(self, metrics: PrometheusObserver, method: str) -> None:
        self._metrics = metrics
        self._method = method

    def on_step(self, step: StepSummary) -> None:
        self._metrics.count_step(step)

    def on_end(self, summary: CallSummary) -> None:
        self._metrics.count_call(self._method, summary)
