"""Metrics of a server while it generates: scraped, and held against what was done."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from splitlearn import SplitModelForCausalLM
from splitlearn_comm import AddressInUseError, GRPCComputeClient, InvalidRequestError
from splitlearn_comm.protocol import COMPUTE, SESSION
from splitlearn_comm.testing import RecordingObserver, eventually
from splitlearn_manager import ManagedServer, ServerConfig
from splitlearn_manager.lifecycle import State
from splitlearn_manager.observability import MetricsEndpoint, PrometheusObserver
from tests.support.models import save_gpt2

torch.set_num_threads(1)

PROMPT = torch.tensor([[5, 6, 7, 8]])
NEW_TOKENS = 20
LABELS = {"method", "code", "action", "reason", "le", "model", "version", "state", "process", "device"}
"""All that may tell one sample of a metric from another. None of it is a client's to choose."""
SERVED = {"forward", "reorder", "crop", "start_recording", "open", "close", "export", "import", "unknown"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return str(directory)


@pytest.fixture
def server(model: str) -> Iterator[ManagedServer]:
    with ManagedServer(model, port=0, config=ServerConfig(metrics_port=0)) as server:
        yield server


class Page:
    """One scrape."""

    def __init__(self, server: ManagedServer) -> None:
        assert server.metrics_url is not None
        with urllib.request.urlopen(server.metrics_url, timeout=20) as answer:
            self.text = answer.read().decode()
        self.families = list(text_string_to_metric_families(self.text))

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample with these labels; 0 where there is none yet."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == f"splitlearn_{name}" and labels.items() <= sample.labels.items()
        ]
        assert len(found) < 2, f"{name} with {labels} is several"
        return found[0] if found else 0.0


def test_counts_agree_with_what_was_done(model: str, server: ManagedServer) -> None:
    client_model = SplitModelForCausalLM.from_pretrained(model, trunk=server.address)
    generate = threading.Thread(
        target=client_model.generate,
        args=(PROMPT,),
        kwargs={"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS},
    )
    generate.start()
    seen = {0.0}
    while generate.is_alive():
        seen.add(Page(server).value("steps_total", action="forward", code="OK"))
    generate.join()
    eventually(lambda: Page(server).value("sessions") == 0)
    page = Page(server)
    assert max(seen) <= NEW_TOKENS
    assert page.value("steps_total", action="forward", code="OK") == NEW_TOKENS == server.statistics().steps
    for histogram in ("step_seconds", "step_overhead_seconds"):
        assert page.value(f"{histogram}_count", action="forward") == NEW_TOKENS
    step_s, overhead_s = (
        page.value(f"{name}_sum", action="forward") for name in ("step_seconds", "step_overhead_seconds")
    )
    assert 0 < overhead_s < step_s
    assert page.value("sessions_opened_total") == page.value("sessions_closed_total", reason="closed") == 1
    received, sent = (page.value(f"step_{name}_bytes_total", action="forward") for name in ("received", "sent"))
    hidden_bytes = (len(PROMPT[0]) + NEW_TOKENS - 1) * 32 * 4
    assert hidden_bytes < received < server.statistics().bytes_received
    assert hidden_bytes < sent < server.statistics().bytes_sent


def test_calls_and_refusals_are_counted(server: ManagedServer) -> None:
    with GRPCComputeClient(server.address) as client:
        client.compute(torch.ones(1, 2, 32))
        with pytest.raises(InvalidRequestError):
            client.compute(torch.ones(1, 2, 31))
        with client.session() as session, pytest.raises(InvalidRequestError):
            session.step(torch.ones(1, 2, 31))
    eventually(lambda: Page(server).value("call_seconds_count", method=SESSION) == 1)
    page = Page(server)
    assert page.value("calls_total", method=COMPUTE, code="OK") == 1
    assert page.value("calls_total", method=COMPUTE, code="INVALID_ARGUMENT") == 1
    assert page.value("steps_total", action="forward", code="INVALID_ARGUMENT") == 1
    assert page.value("call_seconds_count", method=COMPUTE) == 2
    assert page.value("call_received_bytes_total", method=COMPUTE) > 2 * 2 * 31 * 4
    assert page.value("call_sent_bytes_total", method=COMPUTE) > 2 * 32 * 4


def test_nothing_that_a_client_says_is_a_label(server: ManagedServer) -> None:
    with GRPCComputeClient(server.address) as client, client.session() as session:
        session.step(torch.ones(1, 2, 32))
        name = session.session_id
        page = Page(server)
    samples = [sample for family in page.families for sample in family.samples]
    assert {label for sample in samples for label in sample.labels} <= LABELS
    assert {sample.labels["action"] for sample in samples if "action" in sample.labels} <= SERVED
    assert name not in page.text
    assert "127.0.0.1" not in page.text


def test_every_metric_says_what_it_is_and_its_unit() -> None:
    families = list(PrometheusObserver().registry.collect())
    assert len(families) > 8
    for family in families:
        assert family.name.startswith("splitlearn_")
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_an_observer_of_ones_own_is_told_beside_the_metrics(model: str) -> None:
    observer = RecordingObserver()
    config = ServerConfig(metrics_port=0)
    with ManagedServer(model, port=0, config=config, observer=observer) as server:
        with GRPCComputeClient(server.address) as client, client.session() as session:
            session.step(torch.ones(1, 2, 32))
        assert Page(server).value("steps_total", action="forward", code="OK") == 1
    assert [step.action for step in observer.steps] == ["open", "forward", "close"]


def test_the_models_are_on_the_page_and_the_server_is_ready(server: ManagedServer) -> None:
    with GRPCComputeClient(server.address) as client:
        with client.session() as session:
            session.step(torch.ones(1, 3, 32))
        readings = client.watch_statistics(60)
        assert next(readings).value("splitlearn_tokens_total", model="tiny") == 3
        readings.close()
    page = Page(server)
    assert page.value("tokens_total", model="tiny", version="1") == 3
    assert page.value("model_state", model="tiny", state=State.READY.value) == 1
    assert 0 < page.value("model_load_seconds", model="tiny") < 60
    assert page.value("process_resident_bytes", process="serving") > 1e7
    assert server.metrics_url is not None
    with urllib.request.urlopen(server.metrics_url.replace("/metrics", "/readyz"), timeout=20) as answer:
        assert answer.status == 200


def test_pages_for_other_machines_have_to_be_wanted() -> None:
    with pytest.raises(ValueError, match="open_metrics=True"):
        ManagedServer("no/such-model", port=0, config=ServerConfig(metrics_port=0, metrics_host="0.0.0.0"))


def test_without_a_port_there_are_no_metrics(model: str) -> None:
    with ManagedServer(model, port=0) as server:
        assert server.metrics_url is None


def test_the_endpoint_ends_with_its_server_and_starts_again(model: str) -> None:
    server = ManagedServer(model, port=0, config=ServerConfig(metrics_port=0))
    for _ in range(2):
        with server:
            with pytest.raises(RuntimeError, match="running already"):
                server.start(block=False)
            assert Page(server).families
        with pytest.raises(urllib.error.URLError):
            Page(server)
    assert not [thread for thread in threading.enumerate() if "serve_forever" in thread.name]


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUseError, match=f"port {port} is in use"):
            ManagedServer("no/such-model", port=0, config=ServerConfig(metrics_port=port))
        with pytest.raises(AddressInUseError, match="choose another metrics_port"):
            MetricsEndpoint(PrometheusObserver().registry, port).start()


@pytest.mark.parametrize("port", [-1, 65536, "9090", True, 1.5])
def test_a_port_is_a_port(port: object) -> None:
    with pytest.raises(ValueError, match="metrics_port must be a port from 0 to 65535, or None; got"):
        ServerConfig(metrics_port=port)  # type: ignore[arg-type]
