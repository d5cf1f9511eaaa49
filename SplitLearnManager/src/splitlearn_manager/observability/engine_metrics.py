"""Metrics of the models that are served: what their engines did, what their caches hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from splitlearn_manager.observability.families import add_histogram
from splitlearn_manager.runtime.figures import EngineReading

LABELS = ("model", "version")


class ModelKey(NamedTuple):
    """Which model; both are the operator's to choose."""

    name: str
    """What clients ask for."""
    version: str = "1"
    """Its version."""


Read = Callable[[], Mapping[ModelKey, EngineReading]]
"""Tells what each model did up to now. Called in the thread that collects; may wait a moment."""


class EngineMetrics(Collector):
    """Asks the models when it is collected.

    Args:
        read: Tells what each did.
    """

    def __init__(self, read: Read) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values: nobody is asked when this is registered."""
        return self._families({})

    def collect(self) -> Iterator[Metric]:
        """Make metrics of what the models tell."""
        return self._families(self._read())

    def _families(self, readings: Mapping[ModelKey, EngineReading]) -> Iterator[Metric]:
        queue = _histogram("queue_seconds", "From when a step was asked for until its forward began.")
        forward = _histogram("forward_seconds", "Of one forward through the layers, of all its rows.")
        rows = _histogram("forward_rows", "Rows that shared a forward: the batch size.")
        tokens = CounterMetricFamily(
            "splitlearn_tokens", "Tokens that went through the layers, rows times length.", labels=LABELS
        )
        sessions = _gauge("model_sessions", "Sessions that hold a cache.")
        cached = _gauge("kv_tokens", "Tokens in the caches of all sessions, rows times length.")
        used = _gauge("kv_bytes", "What the tokens in the caches of all sessions take.")
        limit = _gauge("kv_limit_bytes", "What they may take; without a sample where there is no limit.")
        trainings = _gauge("trainings", "Clients that train.")
        passes = _gauge("training_passes", "Forwards of clients that train whose backward is waited for.")
        kept = _gauge("training_bytes", "What is kept for clients that train.")
        most = _gauge("training_limit_bytes", "What may be kept for them; without a sample where there is no limit.")
        for key, reading in readings.items():
            labels = list(key)
            add_histogram(queue, labels, reading.queue_s)
            add_histogram(forward, labels, reading.forward_s)
            add_histogram(rows, labels, reading.rows)
            tokens.add_metric(labels, reading.num_tokens)
            sessions.add_metric(labels, reading.num_sessions)
            cached.add_metric(labels, reading.cached_tokens)
            used.add_metric(labels, reading.kv_bytes)
            if reading.kv_limit_bytes is not None:
                limit.add_metric(labels, reading.kv_limit_bytes)
            trainings.add_metric(labels, reading.trainings.num_trainings)
            passes.add_metric(labels, reading.trainings.num_passes)
            kept.add_metric(labels, reading.trainings.num_bytes)
            if reading.trainings.limit_bytes is not None:
                most.add_metric(labels, reading.trainings.limit_bytes)
        yield from (queue, forward, rows, tokens, sessions, cached, used, limit, trainings, passes, kept, most)


def _histogram(name: str, meaning: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"splitlearn_{name}", meaning, labels=LABELS)


def _gauge(name: str, meaning: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"splitlearn_{name}", meaning, labels=LABELS)
