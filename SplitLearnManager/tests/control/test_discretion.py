"""Who may not operate a server is not told where its files lie."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from splitlearn_comm import ServerUnavailableError
from splitlearn_comm.quickstart import Client
from splitlearn_manager import ModelServer, ServerConfig
from splitlearn_manager.control import ControlClient
from splitlearn_manager.control.discretion import without_directories
from splitlearn_manager.errors import ModelLoadError
from tests.support.models import save_gpt2

TOKENS = {"boss": "the-token-of-the-boss", "guest": "the-token-of-a-guest"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/models/tiny/model.safetensors is truncated", "model.safetensors is truncated"),
        ("no model './no/such'; nothing there", "no model 'such'; nothing there"),
        ('cannot open "/srv/my models/a b": denied', 'cannot open "a b": denied'),
        ("it failed (~/models/x/config.json: no JSON)", "it failed (config.json: no JSON)"),
        ("two: ../one/a, /two/b", "two: a, b"),
        ("read https://hub.example/gpt2/resolve/main", "read https://hub.example/gpt2/resolve/main"),
        (
            "openai-community/gpt2 is not on the hub, 3/4 tensors",
            "openai-community/gpt2 is not on the hub, 3/4 tensors",
        ),
        ("it was asked to", "it was asked to"),
    ],
)
def test_of_each_path_the_last_part_is_left(text: str, expected: str) -> None:
    assert without_directories(text) == expected


def test_a_directory_that_looks_like_a_hub_id_or_has_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert without_directories("my models/tiny/config.json is not there", "my models/tiny") == (
        "tiny/config.json is not there"
    )


@pytest.fixture(scope="module")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("where the models are") / "tiny"
    save_gpt2(directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return directory


@pytest.fixture(scope="module")
def server(truncated: Path) -> Iterator[ModelServer]:
    config = ServerConfig(tokens=TOKENS, operators=("boss",))
    with ModelServer(port=0, config=config) as running, control(running, "boss") as boss:
        with pytest.raises(ModelLoadError, match=str(truncated)):
            boss.load_model("tiny", {"model": str(truncated), "num_threads": 1})
        yield running


def control(server: ModelServer, name: str) -> ControlClient:
    return ControlClient(server.address, token=TOKENS[name])


def test_an_operator_sees_where_a_file_lies_and_a_guest_does_not(server: ModelServer, truncated: Path) -> None:
    with control(server, "boss") as boss, control(server, "guest") as guest:
        (to_boss,), (to_guest,) = boss.describe().models, guest.describe().models
    assert to_boss.state == to_guest.state == "FAILED"
    assert f"{truncated}/model.safetensors is truncated" in to_boss.reason
    assert "model.safetensors is truncated" in to_guest.reason
    assert str(truncated.parent) not in to_guest.reason
    assert truncated.parent.name not in to_guest.reason


def test_neither_is_it_told_with_a_session_that_is_refused(server: ModelServer, truncated: Path) -> None:
    with (
        Client(server.address, model="tiny", token=TOKENS["guest"]) as client,
        pytest.raises(ServerUnavailableError, match=r"model\.safetensors is truncated") as refused,
    ):
        client.compute(torch.ones(1, 1, 32))
    assert truncated.parent.name not in str(refused.value)
