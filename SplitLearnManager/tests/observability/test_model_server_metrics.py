"""Metrics of models in processes of their own, as the serving process gives them out."""

import urllib.request
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from splitlearn_comm import GRPCComputeClient
from splitlearn_comm.training import ForwardPass, StartTraining
from splitlearn_manager import ModelServer, ServerConfig
from splitlearn_manager.lifecycle import ModelSpec
from tests.support.models import save_gpt2

torch.set_num_threads(1)


def page_of(server: ModelServer) -> dict[tuple[str, str], float]:
    """Values by name and by whose they are; of states those that are."""
    assert server.metrics_url is not None
    with urllib.request.urlopen(server.metrics_url, timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples if "le" not in sample.labels]
    return {
        (s.name.removeprefix("splitlearn_"), s.labels.get("process") or s.labels.get("model", "")): s.value
        for s in samples
        if "state" not in s.labels or s.value
    }


@pytest.mark.slow
def test_each_model_tells_its_own_from_its_process(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "tiny")
    sizes = {"training_bytes": 1 << 20}
    specs = [ModelSpec(name=name, model=str(tmp_path / "tiny"), num_threads=1, **sizes) for name in ("one", "two")]
    with ModelServer(specs, port=0, config=ServerConfig(metrics_port=0)) as server:
        with GRPCComputeClient(server.address, model="two") as client, client.session() as session:
            for _ in range(3):
                session.step(torch.ones(1, 2, 32))
            page = page_of(server)
            with client.session() as training:
                training.train(StartTraining())
                training.train(ForwardPass(1, torch.ones(1, 2, 32)))
                later = page_of(server)
        assert (page["tokens_total", "one"], page["tokens_total", "two"]) == (0, 6)
        assert (page["queue_seconds_count", "two"], page["forward_seconds_count", "two"]) == (3, 3)
        # Neither before a step was sent nor behind its answer, on the clock that both processes share.
        assert 0 < page["queue_seconds_sum", "two"] < page["step_seconds_sum", ""]
        assert page["kv_tokens", "two"] == 6
        assert page["kv_limit_bytes", "two"] == specs[1].kv_bytes
        assert (later["trainings", "one"], later["trainings", "two"], later["training_passes", "two"]) == (0, 1, 1)
        assert 0 < later["training_bytes", "two"] < later["training_limit_bytes", "two"] == 1 << 20
        assert page["model_state", "one"] == page["model_state", "two"] == 1
        assert 0 < page["model_load_seconds", "one"] < 120
        for process in ("serving", "one:1", "two:1"):
            assert page["process_resident_bytes", process] > 1e7
