"""Metrics of a server, for Prometheus.

Base units, the prefix `splitlearn_`, and no label that clients could fill: never the name of a session, of a client or
of a call.
"""

from __future__ import annotations

import time

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from splitlearn_comm import CallSummary, ObservedCall, Observer, StepSummary
from splitlearn_comm.observer import Metadata
from splitlearn_manager.observability.buckets import HOP_BUCKETS_S
from splitlearn_manager.observability.step_metrics import StepMetrics


class PrometheusObserver(Observer):
    """Counts what a server does (`observer=`), in a registry of its own.

    Args:
        registry: Where the metrics are kept; None for a new one.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        """What an endpoint gives out."""
        self.steps = StepMetrics()
        """Those of the messages of sessions."""
        self.registry.register(self.steps)
        self._calls = self._counter("calls", "Calls that ended; a session's stream is one.", "method", "code")
        self._call_seconds = Histogram(
            "splitlearn_call_seconds",
            "From the beginning of a call to its end; of a stream, all of its steps.",
            ("method",),
            buckets=HOP_BUCKETS_S,
            registry=self.registry,
        )
        self._received = self._counter("call_received_bytes", "Bytes of messages of unary calls received.", "method")
        self._sent = self._counter("call_sent_bytes", "Bytes of their answers.", "method")
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
        self._received.labels(method).inc(summary.bytes_received)
        self._sent.labels(method).inc(summary.bytes_sent)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"splitlearn_{name}", meaning, labels, registry=self.registry)


class _Counted(ObservedCall):
    def __init__(self, metrics: PrometheusObserver, method: str) -> None:
        self._metrics = metrics
        self._method = method
        self._steps = metrics.steps
        self._opened_s: float | None = None

    def on_step(self, step: StepSummary) -> None:
        self._steps.add(step)
        if step.action == "open":
            self._opened_s = time.perf_counter() - step.seconds
        elif self._opened_s is not None and step.action == "forward" and step.code is grpc.StatusCode.OK:
            self._steps.add_first(time.perf_counter() - self._opened_s)
            self._opened_s = None

    def on_end(self, summary: CallSummary) -> None:
        self._metrics.count_call(self._method, summary)
