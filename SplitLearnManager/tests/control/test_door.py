"""Who may operate a server, and how it is ended from elsewhere."""

from collections.abc import Collection

import pytest
import torch

from splitlearn_comm import AuthenticationError, InvalidRequestError, PermissionDeniedError, ServerUnavailableError
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing.waiting import eventually
from splitlearn_manager import ManagedServer, ServerConfig
from splitlearn_manager.control import ControlClient
from splitlearn_manager.control.door import refusal_of
from splitlearn_manager.errors import ModelStateError
from tests.support.models import save_gpt2

torch.set_num_threads(1)
OPS, USER = "a-token-for-ops-1234", "a-token-for-a-user-1234"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return str(directory)


@pytest.mark.parametrize(
    ("caller", "peer", "operators", "may"),
    [
        ("ops", "ipv4:10.0.0.1:5000", {"ops"}, True),
        ("user", "ipv4:127.0.0.1:5000", {"ops"}, False),
        ("ops", "ipv4:127.0.0.1:5000", (), False),
        ("ipv4:127.0.0.1", "ipv4:127.0.0.1:5000", None, True),
        ("ipv6:[::1]", "ipv6:%5B::1%5D:5000", None, True),
        ("unix:", "unix:", None, True),
        ("ipv4:10.0.0.1", "ipv4:10.0.0.1:5000", None, False),
        ("ipv6:[2001:db8::1]", "ipv6:%5B2001:db8::1%5D:5000", None, False),
    ],
)
def test_operators_are_known_by_name_or_are_here(
    caller: str, peer: str, operators: Collection[str] | None, may: bool
) -> None:
    assert (refusal_of(caller, peer, operators) is None) is may


def test_with_tokens_operators_alone_load_unload_and_drain(model: str) -> None:
    config = ServerConfig(tokens={"ops": OPS, "user": USER}, operators=("ops",))
    with ManagedServer(model, port=0, config=config) as server:
        with ControlClient(server.address, token=USER) as user:
            assert [row.name for row in user.describe().models] == ["tiny"]
            for ask in (lambda: user.load_model("x"), lambda: user.unload_model("tiny"), user.drain):
                with pytest.raises(PermissionDeniedError, match="'user' is no operator of this server"):
                    ask()
        with ControlClient(server.address) as nobody, pytest.raises(AuthenticationError):
            nobody.describe()
        with ControlClient(server.address, token=OPS) as ops:
            with pytest.raises(ModelStateError, match="this server holds tiny in its own process"):
                ops.unload_model("tiny")
            assert not ops.describe().is_draining


def test_drain_ends_the_server_when_its_sessions_are_gone(model: str) -> None:
    with ManagedServer(model, port=0) as server, ControlClient(server.address) as control:
        with Client(server.address) as client, client.session() as session:
            session.step(torch.zeros(1, 1, 32))
            assert [row.num_sessions for row in control.describe().models] == [1]
            assert control.drain(grace_s=20.0) == 1
        control.wait_gone()
        eventually(lambda: not server._is_serving())
        with ControlClient(server.address) as late, pytest.raises(ServerUnavailableError):
            late.describe()


@pytest.mark.parametrize("grace_s", [-1.0, float("nan"), float("inf")])
def test_a_grace_time_that_is_none(model: str, grace_s: float) -> None:
    with ManagedServer(model, port=0) as server, ControlClient(server.address) as control:
        with pytest.raises(InvalidRequestError, match="grace_s must be a number of seconds"):
            control.drain(grace_s)
        assert not control.describe().is_draining
