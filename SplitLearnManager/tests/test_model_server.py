"""`ModelServer`: models that come and go behind one address, in real processes."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitlearn_comm import ServiceNotFoundError
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing.waiting import eventually
from splitlearn_core import load_part
from splitlearn_manager import ModelServer, ModelSpec
from splitlearn_manager.control import ControlClient
from splitlearn_manager.errors import ModelLoadError, ModelStateError
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
    specs = [
        ModelSpec(name="tiny", model=model, num_threads=1),
        ModelSpec(name="wide", model=model, split_points=(1, 5), num_threads=1),
    ]
    with ModelServer(specs, port=0) as running:
        yield running


@pytest.fixture
def control(server: ModelServer) -> Iterator[ControlClient]:
    with ControlClient(server.address) as client:
        yield client


def states(control: ControlClient) -> dict[tuple[str, str], str]:
    return {(model.name, model.version): model.state for model in control.describe().models}


def health(server: ModelServer, name: str) -> str:
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_clients_choose_by_name_or_by_fingerprint(server: ModelServer, model: str) -> None:
    with Client(server.address, model="wide") as client:
        assert torch.equal(client.compute(HIDDEN_BTH), load_part(model, "trunk", (1, 5))(HIDDEN_BTH))
    with Client(server.address) as client, pytest.raises(ServiceNotFoundError, match="one of tiny, wide"):
        client.compute(HIDDEN_BTH)
    for wanted in (
        {"model": "other"},
        {"model": "tiny", "model_version": "7"},
        {"model": "tiny", "model_version": "x"},
    ):
        with (
            Client(server.address, **wanted) as client,
            pytest.raises(ServiceNotFoundError, match="is not served here"),
        ):
            client.compute(HIDDEN_BTH)
    fingerprint = f"{load_part(model, 'trunk', (1, 5)).fingerprint}:1-5"
    with Client(server.address) as client, client.session(fingerprint) as session:
        assert session.step(HIDDEN_BTH).shape == HIDDEN_BTH.shape


def test_a_session_keeps_its_version_while_another_takes_its_place(
    server: ModelServer, control: ControlClient, model: str
) -> None:
    trunk = load_part(model, "trunk")
    with Client(server.address, model="tiny") as client, client.session() as session:
        first = session.step(HIDDEN_BTH)
        before = max(int(version) for name, version in states(control) if name == "tiny")
        control.load_model("tiny", {"reload": True})
        (old,) = [m for m in control.describe().models if (m.name, m.version) == ("tiny", str(before))]
        assert (old.state, old.num_sessions) == ("DRAINING", 1)
        assert old.reason == f"version {before + 1} took its place"
        second = session.step(HIDDEN_BTH)
        assert health(server, "tiny") == "SERVING"
        with Client(server.address, model="tiny", model_version=str(before + 1)) as newer:
            assert torch.equal(newer.compute(HIDDEN_BTH), trunk(HIDDEN_BTH))
    whole = trunk(torch.cat((HIDDEN_BTH, HIDDEN_BTH), dim=1))
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    eventually(lambda: ("tiny", str(before)) not in states(control))
    assert states(control)["tiny", str(before + 1)] == "READY"


def test_health_follows_each_model(server: ModelServer, control: ControlClient) -> None:
    control.unload_model("wide", {"drain_timeout_s": "0"})
    assert (health(server, "wide"), health(server, "tiny"), health(server, "")) == ("NOT_SERVING", "SERVING", "SERVING")
    control.load_model("wide")
    assert health(server, "wide") == "SERVING"


def test_unload_while_loading_is_refused_and_hanging_up_cancels_the_load(
    server: ModelServer, control: ControlClient, model: str
) -> None:
    refusals = []
    loading = ControlClient(server.address)

    def load() -> None:
        try:
            loading.load_model("slow", {"model": model, "num_threads": 1})
        except Exception as error:
            refusals.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    eventually(lambda: states(control).get(("slow", "1")) == "LOADING")
    with pytest.raises(ModelStateError, match="cannot unload slow version 1: it is loading") as caught:
        control.unload_model("slow")
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    loading.close()
    thread.join()
    assert len(refusals) == 1
    eventually(lambda: states(control)["slow", "1"] == "UNLOADED")
    (slow,) = [m for m in control.describe().models if m.name == "slow"]
    assert slow.reason == "whoever asked for it gave up"


def test_a_model_that_cannot_be_loaded_ends_the_start_and_leaves_no_process(model: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    server = ModelServer([ModelSpec(name="tiny", model=model), ModelSpec(name="gone", model="./no/such")], port=0)
    with pytest.raises(ModelLoadError, match=r"no model '\./no/such'"):
        server.start(block=False)
    assert set(psutil.Process().children(recursive=True)) <= before


SERVE = """
import sys
from splitlearn_manager import ModelServer, ModelSpec
ModelServer([ModelSpec(name="tiny", model=sys.argv[1], num_threads=1)], port=0).start(on_ready=lambda: print("ready"))
print("stopped", flush=True)
"""


def test_a_signal_while_the_first_models_load_ends_it_in_order(model: str) -> None:
    command = [sys.executable, "-c", SERVE, model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: process.poll() is not None or psutil.Process(process.pid).children(), timeout_s=60)
        loading = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=60)
    # Whether the models are there before it is heard, is for the machine to say.
    assert process.returncode == 0, errors
    assert out in ("stopped\n", "ready\nstopped\n")
    assert "Traceback" not in errors
    assert len(loading) == 1
    eventually(lambda: not loading[0].is_running())


def test_an_empty_server_takes_models_and_starts_again(model: str) -> None:
    server = ModelServer(port=0)
    for _ in range(2):
        with server, ControlClient(server.address) as control, Client(server.address) as client:
            assert control.describe().models == ()
            with pytest.raises(ServiceNotFoundError, match="nothing is served here now"):
                client.compute(HIDDEN_BTH)


def test_two_models_of_one_name() -> None:
    with pytest.raises(ValueError, match="two models are gpt2 version 1: give each a name or a version of its own"):
        ModelServer(["gpt2", "openai-community/gpt2"], port=0)
