"""Metrics of what happens at every step.

The metrics of prometheus_client cost some 30 µs a step here, and three times that between two steps of a model, whose
weights have swept the caches. So a step is added to plain numbers, and metrics are made of them when they are fetched.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import grpc
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from splitlearn_comm import StepSummary
from splitlearn_manager.observability.buckets import HOP_BUCKETS_S, TOKEN_BUCKETS_S

_OK = grpc.StatusCode.OK
_OVERFLOW = ("+Inf",)


class Times:
    """How often which times were seen.

    Args:
        edges_s: Upper edges of the buckets, in seconds, ascending; what is above all of them is counted too.
    """

    def __init__(self, edges_s: tuple[float, ...]) -> None:
        self._edges_s = edges_s
        self._counts = [0] * (len(edges_s) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._edges_s, seconds)] += 1
        self._sum_s += seconds

    def put_into(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Add what was counted to a metric."""
        names = [*map(floatToGoString, self._edges_s), *_OVERFLOW]
        total, buckets = 0, []
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, float(total)))
        family.add_metric(labels, buckets, self._sum_s)


class _Action:
    """What was seen of one kind of message."""

    def __init__(self) -> None:
        self.num_done = 0
        self.num_failed: dict[str, int] = {}
        self.seconds = Times(TOKEN_BUCKETS_S)
        self.overhead_s = Times(HOP_BUCKETS_S)
        self.bytes_received = 0
        self.bytes_sent = 0


class StepMetrics(Collector):
    """Adds up the messages of sessions; register it to have them in what Prometheus fetches."""

    def __init__(self) -> None:
        self._actions: dict[str, _Action] = {}
        self._lock = threading.Lock()

    def add(self, step: StepSummary) -> None:
        """Count one. May be called by several threads."""
        with self._lock:
            seen = self._actions.get(step.action) or self._actions.setdefault(step.action, _Action())
            if step.code is _OK:
                seen.num_done += 1
            else:
                seen.num_failed[step.code.name] = seen.num_failed.get(step.code.name, 0) + 1
            seen.seconds.add(step.seconds)
            seen.overhead_s.add(step.seconds - step.compute_s)
            seen.bytes_received += step.bytes_received
            seen.bytes_sent += step.bytes_sent

    def collect(self) -> Iterable[Metric]:
        """Make metrics of what was seen up to now."""
        with self._lock:
            return list(self._families())

    def _families(self) -> Iterator[Metric]:
        steps = CounterMetricFamily(
            "splitlearn_steps", "Messages of sessions that were answered.", labels=("action", "code")
        )
        seconds = HistogramMetricFamily(
            "splitlearn_step_seconds",
            "From the arrival of a message of a session until its answer.",
            labels=("action",),
        )
        overhead = HistogramMetricFamily(
            "splitlearn_step_overhead_seconds", "Of that, all that did not happen in the model.", labels=("action",)
        )
        received = CounterMetricFamily(
            "splitlearn_step_received_bytes", "Bytes of messages of sessions received.", labels=("action",)
        )
        sent = CounterMetricFamily("splitlearn_step_sent_bytes", "Bytes of their answers.", labels=("action",))
        for action, seen in self._actions.items():
            for code, count in {_OK.name: seen.num_done, **seen.num_failed}.items():
                if count:
                    steps.add_metric((action, code), count)
            seen.seconds.put_into(seconds, [action])
            seen.overhead_s.put_into(overhead, [action])
            received.add_metric((action,), seen.bytes_received)
            sent.add_metric((action,), seen.bytes_sent)
        yield from (steps, seconds, overhead, received, sent)
