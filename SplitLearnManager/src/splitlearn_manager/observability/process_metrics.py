"""Metrics of the processes of a server: its own, and those of its models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SERVING = "serving"
"""What the serving process is called."""


class ProcessMetrics(Collector):
    """Looks at the processes when it is collected.

    Args:
        models: Tells the processes of models, by a name of the operator's choosing.
    """

    def __init__(self, models: Callable[[], Mapping[str, int]] = dict) -> None:
        self._models = models

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values."""
        return self._families({})

    def collect(self) -> Iterator[Metric]:
        """Make metrics of what the processes are now; one that has just ended is left out."""
        return self._families({SERVING: os.getpid(), **self._models()})

    def _families(self, pids: Mapping[str, int]) -> Iterator[Metric]:
        labels = ("process",)
        cpu = CounterMetricFamily("splitlearn_process_cpu_seconds", "CPU time, of user and system.", labels=labels)
        memory = GaugeMetricFamily("splitlearn_process_resident_bytes", "Memory in use.", labels=labels)
        threads = GaugeMetricFamily("splitlearn_process_threads", "Threads.", labels=labels)
        started = GaugeMetricFamily(
            "splitlearn_process_start_time_seconds", "When it began, in seconds since 1970.", labels=labels
        )
        for name, pid in pids.items():
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    memory.add_metric((name,), process.memory_info().rss)
                    cpu.add_metric((name,), times.user + times.system)
                    threads.add_metric((name,), process.num_threads())
                    started.add_metric((name,), process.create_time())
            except psutil.Error:
                continue
        yield from (cpu, memory, threads, started)
