"""What a server tells its operators: metrics for Prometheus, and where they are fetched."""

from splitlearn_manager.observability.endpoint import MetricsEndpoint, check_metrics_binding
from splitlearn_manager.observability.engine_metrics import ModelKey
from splitlearn_manager.observability.metrics import PrometheusObserver
from splitlearn_manager.observability.server_metrics import ServerMetrics

__all__ = ["MetricsEndpoint", "ModelKey", "PrometheusObserver", "ServerMetrics", "check_metrics_binding"]
