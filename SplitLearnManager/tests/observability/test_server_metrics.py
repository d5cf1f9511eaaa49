"""All metrics of a server: what its models tell, its processes, its GPUs; and the pages where they are."""

import asyncio
import http.client
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from splitlearn_comm import (
    Action,
    AddressInUseError,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    SessionHost,
    StatisticsReading,
)
from splitlearn_comm.server.loop import server_loop
from splitlearn_comm.testing import RunningSumHost, eventually
from splitlearn_core.testing import random_hidden, tiny_trunk
from splitlearn_manager.control.models import ModelRow
from splitlearn_manager.lifecycle import State
from splitlearn_manager.observability import MetricsEndpoint, ModelKey, ServerMetrics, check_metrics_binding
from splitlearn_manager.observability.bridge import LoopBridge
from splitlearn_manager.observability.gpu_metrics import GpuMetrics, GpuReading
from splitlearn_manager.observability.process_metrics import ProcessMetrics
from splitlearn_manager.observability.readings import Readings
from splitlearn_manager.runtime.figures import EngineReading
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk
from splitlearn_manager.runtime.measured_host import MeasuredHost

torch.set_num_threads(1)
PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
TINY = ModelKey("tiny", "3")


@pytest.fixture
def host() -> HostedTrunk:
    return HostedTrunk(tiny_trunk(), name="tiny")


@pytest.fixture
def metrics(host: HostedTrunk) -> ServerMetrics:
    model = ModelRow(
        name="tiny",
        version=3,
        state=State.READY,
        reason="it was loaded",
        since=0.0,
        num_sessions=0,
        host=host,
        load_s=1.5,
    )
    return ServerMetrics(lambda: (model,))


@pytest.fixture
def server(host: HostedTrunk, metrics: ServerMetrics) -> Iterator[GRPCComputeServer]:
    with GRPCComputeServer(host, port=0, observer=metrics.observer, samples=metrics.samples) as server:
        yield server


def read(url: str) -> tuple[int, str]:
    """Status and text of a page."""
    host, _, rest = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request("GET", "/" + rest)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_what_the_models_did_is_on_the_page(server: GRPCComputeServer, metrics: ServerMetrics) -> None:
    with GRPCComputeClient(server.address) as client, client.session() as session:
        for num_tokens in (5, 1, 1):
            session.step(random_hidden(1, num_tokens))
        with MetricsEndpoint(metrics.registry, 0) as endpoint:
            text = read(endpoint.url)[1]
    found = {(s.name, s.labels.get("le", "")): s for f in text_string_to_metric_families(text) for s in f.samples}
    assert found["splitlearn_tokens_total", ""].value == 7
    assert found["splitlearn_tokens_total", ""].labels == {"model": "tiny", "version": "3"}
    for histogram in ("queue_seconds", "forward_seconds", "forward_rows"):
        assert found[f"splitlearn_{histogram}_count", ""].value == 3
        assert found[f"splitlearn_{histogram}_bucket", "+Inf"].value == 3
    assert found["splitlearn_forward_rows_bucket", "1.0"].value == 3
    assert found["splitlearn_model_sessions", ""].value == 1
    assert found["splitlearn_kv_tokens", ""].value == 7
    assert found["splitlearn_kv_bytes", ""].value > 0
    assert ("splitlearn_kv_limit_bytes", "") not in found
    assert found["splitlearn_trainings", ""].value == found["splitlearn_training_bytes", ""].value == 0
    assert ("splitlearn_training_limit_bytes", "") not in found
    assert found["splitlearn_model_load_seconds", ""].value == 1.5
    states = {s.labels["state"]: s.value for f in metrics.registry.collect() for s in f.samples if "state" in s.labels}
    assert [state for state, value in states.items() if value] == [State.READY.value]
    first = found["splitlearn_time_to_first_step_seconds_sum", ""].value
    steps = found["splitlearn_step_seconds_sum", ""].value
    assert found["splitlearn_time_to_first_step_seconds_count", ""].value == 1
    assert 0 < first < 20
    assert steps > 0


def test_who_watches_gets_what_is_on_the_page(server: GRPCComputeServer, metrics: ServerMetrics) -> None:
    with GRPCComputeClient(server.address) as client:
        with client.session() as session:
            session.step(random_hidden(1, 4))
        readings = client.watch_statistics(60)
        reading: StatisticsReading = next(readings)
        readings.close()
    page = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert {sample.name for sample in reading.samples} == {name for name in page if not name.endswith("_created")}
    assert reading.value("splitlearn_tokens_total", model="tiny") == 4
    assert reading.value("splitlearn_steps_total", action="forward", code="OK") == 1


def test_the_table_has_every_metric_and_no_other(metrics: ServerMetrics) -> None:
    told = set(re.findall(r"`(splitlearn_\w+)`", "".join(re.findall(r"^\|.*$", PAGE.read_text(), re.M))))
    found = {f.name + ("_total" if f.type == "counter" else "") for f in metrics.registry.collect()}
    assert told == found


def test_the_table_has_the_labels_of_every_metric(server: GRPCComputeServer, metrics: ServerMetrics) -> None:
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `splitlearn_")]
    told = {name: set(re.findall(r"`(\w+)`", row[2])) for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    with GRPCComputeClient(server.address) as client, client.session() as session:
        session.step(random_hidden(1, 4))
        families = list(metrics.registry.collect())
    for family in families:
        for sample in family.samples:
            name = family.name + ("_total" if family.type == "counter" else "")
            assert set(sample.labels) - {"le"} == told[name], name


def test_nobody_is_asked_when_metrics_are_registered() -> None:
    def fail() -> tuple[ModelRow, ...]:
        raise AssertionError("asked")

    ServerMetrics(fail)


class Stuck(RunningSumHost, MeasuredHost):
    """Never tells what it did."""

    async def read(self) -> EngineReading | None:
        await asyncio.Event().wait()
        return None


def test_a_model_that_does_not_answer_is_left_out_and_the_others_are_there(host: HostedTrunk) -> None:
    hosts: dict[ModelKey, SessionHost] = {ModelKey("stuck"): Stuck(), TINY: host, ModelKey("sum"): RunningSumHost()}
    readings = Readings(lambda: hosts, LoopBridge(server_loop().loop), timeout_s=1.0)
    assert set(readings()) == {TINY}


def test_a_loop_that_does_not_answer_holds_the_page_up_only_so_long() -> None:
    may_go_on = threading.Event()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        serving = threading.Thread(target=lambda: runner.run(asyncio.to_thread(may_go_on.wait, 20)))
        loop.call_soon(may_go_on.wait, 20)
        serving.start()
        try:
            assert Readings(dict, LoopBridge(loop, timeout_s=0.05))() == {}
            assert not may_go_on.is_set()
        finally:
            may_go_on.set()
            serving.join()


def test_processes_are_told_by_their_names() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        registry = CollectorRegistry()
        registry.register(ProcessMetrics(lambda: {"gpt2:1": child.pid}))
        for process in ("serving", "gpt2:1"):
            assert registry.get_sample_value("splitlearn_process_resident_bytes", {"process": process})
        mine = registry.get_sample_value("splitlearn_process_cpu_seconds_total", {"process": "serving"})
        assert mine is not None
        assert 0 < mine <= sum(os.times()[:2]) + 0.1
    finally:
        child.communicate(b"\n")
    assert registry.get_sample_value("splitlearn_process_threads", {"process": "gpt2:1"}) is None
    assert registry.get_sample_value("splitlearn_process_threads", {"process": "serving"}) is not None


def test_gpus_are_told_by_their_numbers() -> None:
    registry = CollectorRegistry()
    registry.register(
        GpuMetrics(
            lambda: [
                GpuReading(index=0, used_bytes=3, total_bytes=10, utilisation=0.25),
                GpuReading(index=2, used_bytes=4, total_bytes=20, utilisation=None),
            ]
        )
    )
    assert registry.get_sample_value("splitlearn_gpu_memory_used_bytes", {"device": "2"}) == 4
    assert registry.get_sample_value("splitlearn_gpu_utilisation_ratio", {"device": "0"}) == 0.25
    assert registry.get_sample_value("splitlearn_gpu_utilisation_ratio", {"device": "2"}) is None


def test_a_real_gpu_tells_what_torch_holds() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    held = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    registry = CollectorRegistry()
    registry.register(GpuMetrics())
    used = registry.get_sample_value("splitlearn_gpu_memory_used_bytes", {"device": "0"})
    assert used is not None
    assert used >= held.nbytes
    del held


def test_the_pages_for_health() -> None:
    is_ready = False
    with MetricsEndpoint(CollectorRegistry(), 0, is_ready=lambda: is_ready) as endpoint:
        base = endpoint.url.removesuffix("/metrics")
        assert read(f"{base}/healthz") == (200, "alive\n")
        assert read(f"{base}/readyz") == (503, "not ready: starting, draining, or no model\n")
        is_ready = True
        assert read(f"{base}/readyz") == (200, "ready\n")
        assert read(f"{base}/other")[0] == 404
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(f"{base}/metrics", data=b"x", timeout=20)


def test_a_client_that_says_nothing_holds_nobody_up() -> None:
    with MetricsEndpoint(CollectorRegistry(), 0) as endpoint:
        host, port = endpoint.url.removeprefix("http://").removesuffix("/metrics").split(":")
        silent = http.client.HTTPConnection(host, int(port))
        silent.connect()
        assert read(endpoint.url)[0] == 200
    silent.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_may_always_read(host: str) -> None:
    check_metrics_binding(host, is_open=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_other_machines_only_where_it_is_said(host: str) -> None:
    with pytest.raises(ValueError, match="open_metrics=True"):
        check_metrics_binding(host, is_open=False)
    check_metrics_binding(host, is_open=True)


def test_a_host_that_is_none_is_said() -> None:
    with pytest.raises(AddressInUseError, match="cannot listen on"):
        MetricsEndpoint(CollectorRegistry(), 0, host="192.0.2.1").start()


class Waiting(RunningSumHost):
    """Its steps end when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        self.has_begun.set()
        await asyncio.to_thread(self.may_end.wait, 20)
        return await super().run_step(session_id, action)


def test_readiness_falls_first_while_steps_still_run() -> None:
    host, metrics = Waiting(), ServerMetrics(tuple)
    server = GRPCComputeServer(host, port=0, config=GRPCServerConfig(drain_timeout_s=20))
    with MetricsEndpoint(metrics.registry, 0, is_ready=lambda: metrics.ask_loop(server.is_ready)) as endpoint:
        ready = endpoint.url.replace("/metrics", "/readyz")
        assert read(ready)[0] == 503
        server.start(block=False)
        assert read(ready)[0] == 200
        with GRPCComputeClient(server.address) as client, client.session() as session:
            stepping = threading.Thread(target=session.step, args=(torch.ones(1, 1, 4),))
            stepping.start()
            assert host.has_begun.wait(20)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            eventually(lambda: read(ready)[0] == 503)
            assert stepping.is_alive()
            host.may_end.set()
            stepping.join(20)
        stopping.join(20)
        assert read(ready)[0] == 503


def test_a_server_is_ready_from_its_start_to_its_end(server: GRPCComputeServer, metrics: ServerMetrics) -> None:
    assert metrics.ask_loop(server.is_ready)
    server.stop()
    assert not metrics.ask_loop(server.is_ready)
