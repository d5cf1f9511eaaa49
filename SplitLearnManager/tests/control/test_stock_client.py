"""A stock client of the Open Inference Protocol, tritonclient, against a server whose models are real processes."""

import json
from collections.abc import Iterator

import pytest
import torch
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from splitlearn_comm.quickstart import Client
from splitlearn_core import load_part
from splitlearn_manager import ManagedServer
from splitlearn_manager.lifecycle import LifecycleConfig, ModelSpec
from splitlearn_manager.model_server import ModelServer
from tests.support.models import save_gpt2

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
HIDDEN_BTH = torch.linspace(-1, 1, 2 * 3 * 32).view(2, 3, 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return str(directory)


@pytest.fixture(scope="module")
def server(model: str) -> Iterator[ModelServer]:
    lifecycle = LifecycleConfig(memory_bytes={"cpu": 1 << 30}, drain_timeout_s=5.0)
    specs = [ModelSpec(name=name, model=model, num_threads=1) for name in ("tiny", "idle")]
    with ModelServer(specs, port=0, lifecycle=lifecycle) as running:
        with InferenceServerClient(running.address) as client:
            client.unload_model("idle")
        yield running


@pytest.fixture
def client(server: ModelServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as stock:
        yield stock


def states(client: InferenceServerClient) -> dict[tuple[str, str], str]:
    return {(model.name, model.version): model.state for model in client.get_model_repository_index().models}


def test_live_ready_and_metadata(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("other")
    metadata = client.get_server_metadata()
    assert (metadata.name, list(metadata.extensions)) == ("splitlearn", ["model_repository"])
    tiny = client.get_model_metadata("tiny")
    assert (tiny.name, list(tiny.versions), tiny.platform) == ("tiny", ["1"], "splitlearn_trunk")
    for tensors in (tiny.inputs, tiny.outputs):
        assert [(t.name, t.datatype, list(t.shape)) for t in tensors] == [("hidden_states", "FP32", [-1, -1, 32])]


def test_load_use_and_unload(client: InferenceServerClient, server: ModelServer, model: str) -> None:
    config = {"model": model, "split_points": [1, 5], "dtype": "bfloat16", "num_threads": 1, "kv_bytes": 1 << 20}
    client.load_model("second", config=json.dumps(config))
    assert states(client)["second", "1"] == states(client)["tiny", "1"] == "READY"
    assert client.get_model_metadata("second").inputs[0].datatype == "BF16"
    with Client(server.address, model="second") as user:
        assert user.get_info().split_points == (1, 5)
        trunk = load_part(model, "trunk", (1, 5), dtype=torch.bfloat16)
        assert torch.equal(user.compute(HIDDEN_BTH.bfloat16()), trunk(HIDDEN_BTH.bfloat16()))
    client.unload_model("second")
    assert states(client)["second", "1"] == "UNLOADED"
    assert not client.is_model_ready("second")
    client.load_model("second")  # as it was
    assert client.get_model_metadata("second").inputs[0].datatype == "BF16"
    client.unload_model("second")


@pytest.mark.parametrize(
    ("name", "config", "code", "words"),
    [
        ("nobody", None, "NOT_FOUND", "there is no model 'nobody'; known are: "),
        ("tiny", None, "ALREADY_EXISTS", "cannot load tiny version 1: it is ready (it was loaded); "),
        ("x", {"model": "m", "colour": 3}, "INVALID_ARGUMENT", "unknown key 'colour' in config; there are model, "),
        ("x", {"model": "m", "dtype": "float12"}, "INVALID_ARGUMENT", "dtype must be one of float32, "),
        ("x/y", {"model": "m"}, "INVALID_ARGUMENT", "a model's name has 1 to 128 letters"),
        ("big", {"kv_bytes": 1 << 40}, "RESOURCE_EXHAUSTED", "no room for big version 1: it needs "),
        ("gone", {"model": "./no/such/model"}, "FAILED_PRECONDITION", "no model './no/such/model'"),
    ],
)
def test_what_cannot_be_loaded(
    client: InferenceServerClient, model: str, name: str, config: dict[str, object] | None, code: str, words: str
) -> None:
    text = None if config is None else json.dumps({"model": model, **config})
    with pytest.raises(InferenceServerException) as caught:
        client.load_model(name, config=text)
    assert caught.value.status() == f"StatusCode.{code}"
    message = caught.value.message()
    assert words in message
    assert "\n" not in message
    assert client.is_model_ready("tiny")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nobody", "NOT_FOUND", "there is no model 'nobody'; known are: "),
        (
            "idle",
            "FAILED_PRECONDITION",
            "cannot unload idle version 1: it is unloaded (it was asked to); load it first",
        ),
    ],
)
def test_what_cannot_be_unloaded(client: InferenceServerClient, model: str, name: str, code: str, words: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model(name)
    assert caught.value.status() == f"StatusCode.{code}"
    assert words in caught.value.message()


def test_metadata_of_what_is_not_loaded(client: InferenceServerClient) -> None:
    for name, code in (("nobody", "NOT_FOUND"), ("idle", "UNAVAILABLE")):
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_metadata(name)
        assert caught.value.status() == f"StatusCode.{code}"


def test_a_server_of_one_model_tells_of_it_and_keeps_it(model: str) -> None:
    with ManagedServer(model, port=0) as server, InferenceServerClient(server.address) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert states(client) == {("tiny", "1"): "READY"}
        for ask in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="this server holds tiny in its own process") as caught:
                ask("tiny")
            assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
