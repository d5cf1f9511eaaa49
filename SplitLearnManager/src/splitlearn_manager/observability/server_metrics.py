"""All metrics of one server, in one registry: what it is told, and what it asks for when they are fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry

from splitlearn_comm import Sample, SessionHost
from splitlearn_comm.server.loop import server_loop
from splitlearn_manager.observability.bridge import LoopBridge
from splitlearn_manager.observability.engine_metrics import EngineMetrics, ModelKey
from splitlearn_manager.observability.gpu_metrics import GpuMetrics
from splitlearn_manager.observability.metrics import PrometheusObserver
from splitlearn_manager.observability.model_metrics import ModelFacts, ModelMetrics
from splitlearn_manager.observability.process_metrics import ProcessMetrics
from splitlearn_manager.observability.readings import Readings

Models = Callable[[], Sequence[ModelFacts]]
"""Tells of all models. Called on the event loop of the server."""


class ServerMetrics:
    """The metrics of a server: give it `observer`, and an endpoint `registry`.

    Args:
        models: tells of all models.
    """

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        """What an endpoint gives out."""
        self.observer = PrometheusObserver(self.registry)
        """To be told of calls, steps and sessions."""
        self._bridge = LoopBridge(server_loop().loop)
        self._models = models
        self.registry.register(EngineMetrics(Readings(self._hosts, self._bridge)))
        self.registry.register(ModelMetrics(self._ask_models))
        self.registry.register(ProcessMetrics(self._processes))
        self.registry.register(GpuMetrics())

    def samples(self) -> Iterator[Sample]:
        """Tell what stands on the page now, for `WatchStatistics`; waits for the models."""
        for family in self.registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    yield Sample(name=sample.name, labels=dict(sample.labels), value=float(sample.value))

    def ask_loop(self, call: Callable[[], bool]) -> bool:
        """Return what a call on the event loop of the server returns; False where it does not answer in time."""

        async def ask() -> bool:
            return call()

        return self._bridge.ask(ask, otherwise=False)

    def _hosts(self) -> Mapping[ModelKey, SessionHost]:
        return {ModelKey(m.name, str(m.version)): m.host for m in self._models() if m.host is not None}

    def _ask_models(self) -> Sequence[ModelFacts]:
        async def ask() -> Sequence[ModelFacts]:
            return self._models()

        nothing: Sequence[ModelFacts] = ()
        return self._bridge.ask(ask, otherwise=nothing)

    def _processes(self) -> Mapping[str, int]:
        return {f"{m.name}:{m.version}": m.pid for m in self._ask_models() if m.pid is not None}
