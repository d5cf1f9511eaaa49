"""Steps as metrics, held against what prometheus_client itself makes of the same."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from prometheus_client import CollectorRegistry, Histogram

from splitlearn_comm import StepSummary
from splitlearn_manager.observability.buckets import HOP_BUCKETS_S, TOKEN_BUCKETS_S
from splitlearn_manager.observability.step_metrics import MAX_PUT_ASIDE, StepMetrics

SECONDS = (0.0, 0.01, 0.010001, 0.3, 80.0, 1000.0)
"""On edges, between them, and above all."""


def step(seconds: float = 0.02, action: str = "forward", code: grpc.StatusCode = grpc.StatusCode.OK) -> StepSummary:
    return StepSummary(
        action=action, code=code, step_id=1, seconds=seconds, compute_s=0.0, bytes_received=3, bytes_sent=5
    )


def samples(registry: CollectorRegistry, name: str) -> dict[tuple[str, str], float]:
    """Values by name and edge."""
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith(name) and not sample.name.endswith("_created")
    }


@pytest.mark.parametrize(
    ("name", "edges"),
    [("splitlearn_step_seconds", TOKEN_BUCKETS_S), ("splitlearn_step_overhead_seconds", HOP_BUCKETS_S)],
)
def test_times_fall_where_prometheus_puts_them(name: str, edges: tuple[float, ...]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram(name, "The same.", ("action",), buckets=edges, registry=theirs)
    metrics = StepMetrics()
    ours.register(metrics)
    for seconds in SECONDS:
        histogram.labels("forward").observe(seconds)
        metrics.add(step(seconds))
    assert samples(ours, name) == samples(theirs, name)


def test_steps_are_counted_by_what_they_were_and_how_they_ended() -> None:
    registry, metrics = CollectorRegistry(), StepMetrics()
    registry.register(metrics)
    for code in (grpc.StatusCode.OK, grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND):
        metrics.add(step(code=code))
    metrics.add(step(action="crop", code=grpc.StatusCode.NOT_FOUND))
    assert registry.get_sample_value("splitlearn_steps_total", {"action": "forward", "code": "OK"}) == 2
    assert registry.get_sample_value("splitlearn_steps_total", {"action": "forward", "code": "NOT_FOUND"}) == 1
    assert registry.get_sample_value("splitlearn_steps_total", {"action": "crop", "code": "NOT_FOUND"}) == 1
    assert registry.get_sample_value("splitlearn_steps_total", {"action": "crop", "code": "OK"}) is None
    assert registry.get_sample_value("splitlearn_step_received_bytes_total", {"action": "forward"}) == 9
    assert registry.get_sample_value("splitlearn_step_sent_bytes_total", {"action": "forward"}) == 15


def test_overhead_is_neither_the_model_nor_the_wait_for_it() -> None:
    registry, metrics = CollectorRegistry(), StepMetrics()
    registry.register(metrics)
    metrics.add(step(seconds=1.0)._replace(queue_s=0.5, compute_s=0.25))
    assert registry.get_sample_value("splitlearn_step_overhead_seconds_sum", {"action": "forward"}) == 0.25


def test_none_is_lost_or_counted_twice_between_threads() -> None:
    registry, metrics = CollectorRegistry(), StepMetrics()
    registry.register(metrics)
    a_thread = 3 * MAX_PUT_ASIDE + 7

    def add_many(_: int) -> None:
        for _ in range(a_thread):
            metrics.add(step())

    def fetched() -> float:
        return registry.get_sample_value("splitlearn_steps_total", {"action": "forward", "code": "OK"}) or 0.0

    with ThreadPoolExecutor(4) as pool:
        adding = pool.map(add_many, range(4))
        seen = [fetched() for _ in range(20)]
        list(adding)
    assert seen == sorted(seen)
    assert fetched() == 4 * a_thread
    assert registry.get_sample_value("splitlearn_step_seconds_count", {"action": "forward"}) == 4 * a_thread
