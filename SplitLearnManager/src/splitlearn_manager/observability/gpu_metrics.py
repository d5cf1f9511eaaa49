"""Metrics of the GPUs of this machine, where there are any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pynvml
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One GPU at one moment."""

    index: int
    """Its number, in the driver's order."""
    used_bytes: int
    """Memory in use, of all processes."""
    total_bytes: int
    """Memory it has."""
    utilisation: float | None
    """Share of the last moments in which it computed; None where it does not tell (a slice of one, for example)."""


class GpuMetrics(Collector):
    """Asks the driver when it is collected.

    Args:
        read: Tells of each GPU, in the driver's order.
    """

    def __init__(self, read: Callable[[], Sequence[GpuReading]] | None = None) -> None:
        self._read = read or (read_gpus if has_driver() else list)

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """Make metrics of what the driver tells."""
        return self._families(self._read())

    def _families(self, readings: Sequence[GpuReading]) -> Iterator[Metric]:
        labels = ("device",)
        used = GaugeMetricFamily(
            "splitlearn_gpu_memory_used_bytes", "Memory of a GPU in use, by all processes.", labels=labels
        )
        total = GaugeMetricFamily("splitlearn_gpu_memory_total_bytes", "Memory of a GPU.", labels=labels)
        busy = GaugeMetricFamily(
            "splitlearn_gpu_utilisation_ratio", "Share of the last moments in which a GPU computed.", labels=labels
        )
        for reading in readings:
            label = (str(reading.index),)
            used.add_metric(label, reading.used_bytes)
            total.add_metric(label, reading.total_bytes)
            if reading.utilisation is not None:
                busy.add_metric(label, reading.utilisation)
        yield from (used, total, busy)


def has_driver() -> bool:
    """Return whether GPUs can be asked; the driver's library stays open from then on."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def read_gpus() -> list[GpuReading]:
    """Ask the driver; a GPU that has fallen off is left out."""
    readings = []
    for index in range(_num_gpus()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError:
            continue
        readings.append(
            GpuReading(
                index=index,
                used_bytes=int(memory.used),
                total_bytes=int(memory.total),
                utilisation=_utilisation(handle),
            )
        )
    return readings


def _num_gpus() -> int:
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def _utilisation(handle: object) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except pynvml.NVMLError:
        return None
