"""Metrics of the lives of models: their states, and how long they took to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitlearn_manager.lifecycle.entry import ModelStatus
from splitlearn_manager.lifecycle.state import State
from splitlearn_manager.observability.engine_metrics import LABELS


class ModelMetrics(Collector):
    """Asks for the models when it is collected.

    Args:
        statuses: Tells of all models, whatever their states. Called in the thread that collects.
    """

    def __init__(self, statuses: Callable[[], Sequence[ModelStatus]]) -> None:
        self._statuses = statuses

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """Make metrics of the models as they are now."""
        return self._families(self._statuses())

    def _families(self, statuses: Sequence[ModelStatus]) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "splitlearn_model_state", "1 for the state a model is in, 0 for the others.", labels=(*LABELS, "state")
        )
        loading = GaugeMetricFamily(
            "splitlearn_model_load_seconds", "How long its last load took, warm-up included.", labels=LABELS
        )
        for status in statuses:
            labels = (status.name, str(status.version))
            for each in State:
                state.add_metric((*labels, each.value), float(each is status.state))
            if status.load_s is not None:
                loading.add_metric(labels, status.load_s)
        yield from (state, loading)
