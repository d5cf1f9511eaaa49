"""What a server tells its operators: metrics for Prometheus, and where they are fetched."""

from splitlearn_manager.observability.endpoint import MetricsEndpoint
from splitlearn_manager.observability.metrics import PrometheusObserver

__all__ = ["MetricsEndpoint", "PrometheusObserver"]
