"""Plain numbers as families of metrics."""

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from splitlearn_manager.runtime.figures import Counted


def add_histogram(family: HistogramMetricFamily, labels: list[str], counted: Counted) -> None:
    """Add what was counted to a metric."""
    total, buckets = 0, []
    for edge, count in zip((*map(floatToGoString, counted.edges), "+Inf"), counted.counts, strict=True):
        total += count
        buckets.append((edge, float(total)))
    family.add_metric(labels, buckets, counted.sum)
