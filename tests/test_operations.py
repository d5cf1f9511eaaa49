"""What is in ops/ and docs/operations.md, held against a server that runs and against Prometheus itself."""

import json
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from splitlearn_comm import GRPCComputeClient
from splitlearn_comm.testing import eventually
from splitlearn_manager import ManagedServer, ServerConfig
from splitlearn_manager.observability import check_metrics_binding
from splitlearn_manager.settings import read_file, settings_from
from tests.support.models import save_gpt2
from tests.support.page_runs import run_page

ROOT = Path(__file__).resolve().parents[1]
OPS = ROOT / "ops"
PAGE = ROOT / "docs" / "operations.md"
ALERTS: list[dict[str, Any]] = yaml.safe_load((OPS / "alerts.yml").read_text())["groups"][0]["rules"]
COMPOSE: dict[str, Any] = yaml.safe_load((OPS / "compose.yaml").read_text())
PANELS: list[dict[str, Any]] = json.loads((OPS / "grafana" / "dashboards" / "splitlearn.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}

with_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="Prometheus is not installed"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    with ManagedServer(str(directory), port=0, config=ServerConfig(metrics_port=0)) as server:
        with GRPCComputeClient(server.address) as client:
            client.compute(torch.ones(1, 2, 32))
            with client.session() as session:
                for _ in range(3):
                    session.step(torch.ones(1, 2, 32))
        yield server


@pytest.fixture(scope="module")
def page(server: ManagedServer) -> str:
    assert server.metrics_url is not None
    with urllib.request.urlopen(server.metrics_url, timeout=20) as answer:
        return str(answer.read().decode())


def families_of(page: str) -> list[Metric]:
    """The metrics on a page, without the times at which prometheus_client made its counters."""
    return [family for family in text_string_to_metric_families(page) if not family.name.endswith("_created")]


def labels_of(page: str) -> dict[str, set[str]]:
    """The series that can be queried, and the labels that each may have."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `splitlearn_")]
    told = {name: set(re.findall(r"`(\w+)`", row[2])) for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    found = {}
    for family in families_of(page):
        for suffix in SUFFIXES[family.type]:
            series = family.name + suffix
            found[series] = told[series if series in told else family.name] | {"instance", "job", "le"}
    return found


@pytest.mark.parametrize("query", [*QUERIES, *(alert["expr"] for alert in ALERTS)])
def test_what_is_queried_is_there(query: str, page: str) -> None:
    known = labels_of(page)
    queried = set(re.findall(r"\bsplitlearn_\w+", query))
    assert queried <= known.keys()
    assert queried or query.startswith("up{")
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query))
    for group in re.findall(r"by \(([^)]*)\)", query):
        labels |= {label.strip() for label in group.split(",")}
    allowed = set.union(*(known[name] for name in queried)) if queried else {"job"}
    assert labels <= allowed


def test_every_metric_but_bytes_of_nobody_is_on_the_dashboard(page: str) -> None:
    shown = {name for query in QUERIES for name in re.findall(r"splitlearn_\w+", query)}
    hidden = {family.name for family in families_of(page) if not any(name.startswith(family.name) for name in shown)}
    assert hidden == set()


@with_prometheus
def test_promtool_finds_nothing_wrong(page: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": grafana_free(query)} for i, query in enumerate(QUERIES)]
    panels = tmp_path / "panels.yml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for command, stdin in (
        (["check", "metrics"], page),
        (["check", "config", str(OPS / "prometheus.yml")], ""),
        (["check", "rules", str(panels)], ""),
        (["test", "rules", str(OPS / "alerts_test.yml")], ""),
    ):
        ran = subprocess.run(
            ["promtool", *command], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
        assert not ran.stderr.strip() or command[1] != "metrics", ran.stderr


def grafana_free(query: str) -> str:
    """A query as Prometheus gets it."""
    return query.replace("$__rate_interval", "1m").replace("$instance", ".*")


def test_every_alert_is_tried() -> None:
    tried = set(re.findall(r"alertname=\"(\w+)\"", (OPS / "alerts_test.yml").read_text()))
    assert tried == {alert["alert"] for alert in ALERTS}


def test_every_alert_has_its_section() -> None:
    assert re.findall(r"^### (SplitLearn\w+)$", PAGE.read_text(), re.M) == [alert["alert"] for alert in ALERTS]


@pytest.fixture
def prometheus(server: ManagedServer, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes the server every second."""
    assert server.metrics_url is not None
    target = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
    config = yaml.safe_load((OPS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(OPS / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", "--web.listen-address=127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, (re.search(r'"Listening on" address=(\S+)', line) for line in process.stderr)))
            # It goes on talking, and stops when nobody listens.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield found[1]
        finally:
            process.terminate()
            process.wait(20)


def ask(address: str, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers to a query; nothing where it is not ready."""
    try:
        with urllib.request.urlopen(
            f"http://{address}/api/v1/query?{urlencode({'query': query})}", timeout=20
        ) as found:
            result: list[dict[str, Any]] = json.load(found)["data"]["result"]
            return result
    except urllib.error.HTTPError:
        return []


@pytest.mark.slow
@with_prometheus
def test_a_prometheus_scrapes_a_server(prometheus: str) -> None:
    def scraped() -> bool:
        return any(sample["value"][1] == "1" for sample in ask(prometheus, 'up{job="splitlearn"}'))

    eventually(scraped, timeout_s=60)
    (steps,) = ask(prometheus, 'splitlearn_steps_total{action="forward", code="OK"}')
    assert steps["value"][1] == "3"
    (tokens,) = ask(prometheus, "splitlearn_tokens_total")
    assert (tokens["value"][1], tokens["metric"]["model"]) == ("6", "tiny")
    assert ask(prometheus, 'ALERTS{alertstate="firing"}') == []


@pytest.mark.slow
def test_the_code_of_the_page_runs_as_written(tmp_path: Path) -> None:
    assert run_page(PAGE, tmp_path) == "0.0\n"


def test_images_are_pinned() -> None:
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", (OPS / "Dockerfile").read_text(), re.M)
    assert len(images) == 3
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", image), image


def test_what_is_mounted_is_there_and_read_only() -> None:
    for service in COMPOSE["services"].values():
        for mount in service["volumes"]:
            source, target, *mode = mount.split(":")
            if source.startswith("./"):
                assert (OPS / source).exists(), source
                assert mode == ["ro"]
            else:
                assert source in COMPOSE["volumes"]
            assert target.startswith("/")


def test_only_this_machine_reaches_what_is_published() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)


def test_services_wait_for_services_that_there_are() -> None:
    services = COMPOSE["services"]
    assert {name for service in services.values() for name in service.get("depends_on", [])} <= services.keys()
    allowed = {"build", "image", "command", "ports", "volumes", "healthcheck", "stop_grace_period", "restart"}
    for name, service in services.items():
        assert set(service) <= allowed | {"environment", "depends_on"}, name
        assert ("image" in service) != ("build" in service)
    assert COMPOSE.keys() == {"name", "services", "volumes"}


def test_the_servers_of_the_files_know_each_other() -> None:
    settings = settings_from(("server.toml", read_file(OPS / "server.toml")))
    config = settings.server
    check_metrics_binding(config.metrics_host, config.open_metrics)
    targets = yaml.safe_load((OPS / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"server:{config.metrics_port}"]
    assert f"127.0.0.1:{config.metrics_port}/readyz" in COMPOSE["services"]["server"]["healthcheck"]["test"][-1]
    assert COMPOSE["services"]["server"]["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    (source,) = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert {p["datasource"]["uid"] for p in PANELS if p["type"] != "row"} == {source["uid"]}
