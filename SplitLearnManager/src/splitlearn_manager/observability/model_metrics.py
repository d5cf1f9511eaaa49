"""Metrics of the lives of models: their states, and how long they took to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitlearn_comm import SessionHost
from splitlearn_manager.lifecycle.state import State
from splitlearn_manager.observability.engine_metrics import LABELS


class ModelFacts(Protocol):
    """What there is to know about one version of a model."""

    @property
    def name(self) -> str:
        """What clients ask for."""

    @property
    def version(self) -> int:
        """Number of this version."""

    @property
    def state(self) -> State:
        """What it is doing."""

    @property
    def load_s(self) -> float | None:
        """How long its last load took, in seconds; None where that is not known."""

    @property
    def pid(self) -> int | None:
        """Its own process; None without one."""

    @property
    def host(self) -> SessionHost | None:
        """What serves it; None unless it was loaded."""


class ModelMetrics(Collector):
    """Asks for the models when it is collected.

    Args:
        models: Tells of all models, whatever their states. Called in the thread that collects.
    """

    def __init__(self, models: Callable[[], Sequence[ModelFacts]]) -> None:
        self._models = models

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """Make metrics of the models as they are now."""
        return self._families(self._models())

    def _families(self, models: Sequence[ModelFacts]) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "splitlearn_model_state", "1 for the state a model is in, 0 for the others.", labels=(*LABELS, "state")
        )
        loading = GaugeMetricFamily(
            "splitlearn_model_load_seconds", "How long its last load took, warm-up included.", labels=LABELS
        )
        for model in models:
            labels = (model.name, str(model.version))
            for each in State:
                state.add_metric((*labels, each.value), float(each is model.state))
            if model.load_s is not None:
                loading.add_metric(labels, model.load_s)
        yield from (state, loading)
