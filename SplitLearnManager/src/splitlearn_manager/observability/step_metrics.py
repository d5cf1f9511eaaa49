"""Metrics of what happens at every step.

The metrics of prometheus_client cost some 30 µs a step here, and three times that between two steps of a model, whose
weights have swept the caches. So a step is only put aside, some hundred of them are added to plain numbers at once, and
metrics are made of those when they are fetched.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

import grpc
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from splitlearn_comm import StepSummary
from splitlearn_manager.observability.buckets import HOP_BUCKETS_S, TOKEN_BUCKETS_S
from splitlearn_manager.observability.families import add_histogram
from splitlearn_manager.runtime.figures import Counted, Distribution

MAX_PUT_ASIDE = 256
"""Steps that wait to be added up."""
_OK = grpc.StatusCode.OK


class _Action:
    """What was seen of one kind of message."""

    def __init__(self) -> None:
        self.num_done = 0
        self.num_failed: dict[str, int] = {}
        self.seconds = Distribution(TOKEN_BUCKETS_S)
        self.overhead_s = Distribution(HOP_BUCKETS_S)
        self.bytes_received = 0
        self.bytes_sent = 0


class StepMetrics(Collector):
    """Adds up the messages of sessions; register it to have them in what Prometheus fetches."""

    def __init__(self) -> None:
        self._actions: dict[str, _Action] = {}
        self._first_s = Distribution(TOKEN_BUCKETS_S)
        self._put_aside: deque[StepSummary] = deque()  # of which taking and giving need no lock
        self._lock = threading.Lock()

    def add(self, step: StepSummary) -> None:
        """Count one. May be called by several threads."""
        self._put_aside.append(step)
        if len(self._put_aside) >= MAX_PUT_ASIDE:
            with self._lock:
                self._add_up()

    def add_first(self, seconds: float) -> None:
        """Count the first forward of a stream, from its opening until the answer. May be called by several threads."""
        with self._lock:
            self._first_s.add(seconds)

    def collect(self) -> Iterable[Metric]:
        """Make metrics of what was seen up to now."""
        with self._lock:
            self._add_up()
            return list(self._families())

    def _add_up(self) -> None:
        while self._put_aside:
            step = self._put_aside.popleft()
            seen = self._actions.get(step.action) or self._actions.setdefault(step.action, _Action())
            if step.code is _OK:
                seen.num_done += 1
            else:
                seen.num_failed[step.code.name] = seen.num_failed.get(step.code.name, 0) + 1
            seen.seconds.add(step.seconds)
            seen.overhead_s.add(step.seconds - step.queue_s - step.compute_s)
            seen.bytes_received += step.bytes_received
            seen.bytes_sent += step.bytes_sent

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
            "splitlearn_step_overhead_seconds",
            "Of that, all that was neither in the model nor waiting for its turn there.",
            labels=("action",),
        )
        received = CounterMetricFamily(
            "splitlearn_step_received_bytes", "Bytes of messages of sessions received.", labels=("action",)
        )
        sent = CounterMetricFamily("splitlearn_step_sent_bytes", "Bytes of their answers.", labels=("action",))
        for action, seen in self._actions.items():
            for code, count in {_OK.name: seen.num_done, **seen.num_failed}.items():
                if count:
                    steps.add_metric((action, code), count)
            add_histogram(seconds, [action], Counted.of(seen.seconds))
            add_histogram(overhead, [action], Counted.of(seen.overhead_s))
            received.add_metric((action,), seen.bytes_received)
            sent.add_metric((action,), seen.bytes_sent)
        first = HistogramMetricFamily(
            "splitlearn_time_to_first_step_seconds",
            "From the opening of a session, or its coming back on another stream, to the answer to its next forward.",
        )
        add_histogram(first, [], Counted.of(self._first_s))
        yield from (steps, seconds, overhead, received, sent, first)
