import os
import socket
import stat
from pathlib import Path

import pytest
import torch

from splitlearn_comm import AddressInUseError, GRPCComputeServer, GRPCServerConfig
from splitlearn_comm.quickstart import Client
from splitlearn_comm.server import ServerTLS, TokenFile, check_binding
from splitlearn_comm.testing import Identity, RunningSumHost

TLS = ServerTLS(certificate="c", key="k")
TOKENS = {"alice": "a-secret-of-alice-0001"}
CLOSED = [
    GRPCServerConfig(tls=TLS, tokens=TOKENS),
    GRPCServerConfig(tls=TLS, tokens=TokenFile("t")),
    GRPCServerConfig(tls=ServerTLS(certificate="c", key="k", client_ca="a")),
    GRPCServerConfig(allow_insecure=True),
]


@pytest.mark.parametrize("interface", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
@pytest.mark.parametrize(
    ("config", "lacks"),
    [
        (GRPCServerConfig(), "neither TLS nor tokens"),
        (GRPCServerConfig(tokens=TOKENS), "no TLS"),
        (GRPCServerConfig(tls=TLS), "TLS but neither tokens nor client_ca"),
    ],
)
def test_an_open_server_is_refused_before_its_service_is_touched(
    interface: str, config: GRPCServerConfig, lacks: str
) -> None:
    with pytest.raises(ValueError, match=f"the server has {lacks}: .*allow_insecure=True"):
        GRPCComputeServer(Identity(), host=interface, config=config)


@pytest.mark.parametrize("config", CLOSED, ids=["tokens", "file", "client-ca", "word"])
def test_a_closed_one_and_an_explicit_word_are_not(config: GRPCServerConfig) -> None:
    check_binding("0.0.0.0", config)


@pytest.mark.parametrize("interface", ["127.0.0.1", "::1", "localhost", "unix:/tmp/x"])
def test_this_machine_may_always_connect(interface: str) -> None:
    check_binding(interface, GRPCServerConfig())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.sock"


def test_a_unix_socket_is_served_for_this_user_alone(path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    with GRPCComputeServer(RunningSumHost(), host=f"unix:{path}") as server:
        assert server.address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for address in (f"unix:{path}", f"unix://{path}"):
            with Client(address) as client, client.session() as session:
                assert torch.equal(session.step(torch.ones(1, 2, 4))[0, 1], torch.full((4,), 2.0))
    assert not path.exists()
    assert os.umask(mask) == mask


def test_a_unix_socket_that_a_killed_server_left_is_taken_over(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with GRPCComputeServer(Identity(), host=f"unix:{path}"), Client(f"unix:{path}") as client:
        assert torch.equal(client.compute(torch.ones(3)), torch.ones(3))


def test_a_unix_socket_that_is_listened_on_is_left_alone(path: Path) -> None:
    with GRPCComputeServer(Identity(), host=f"unix:{path}"), Client(f"unix:{path}") as client:
        with pytest.raises(AddressInUseError, match=f"cannot listen on unix:{path}: a server is listening there"):
            GRPCComputeServer(Identity(), host=f"unix:{path}").start(block=False)
        assert torch.equal(client.compute(torch.ones(3)), torch.ones(3))


def test_a_file_is_never_taken_for_a_socket(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(AddressInUseError, match="a file that is no socket"):
        GRPCComputeServer(Identity(), host=f"unix:{path}").start(block=False)
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(AddressInUseError, match=r"its directory is not there or not writable; .* choose another$"):
        GRPCComputeServer(Identity(), host=f"unix:{path.parent}/none/x.sock").start(block=False)


def test_a_server_on_a_unix_socket_may_be_started_again(path: Path) -> None:
    server = GRPCComputeServer(Identity(), host=f"unix:{path}")
    for _ in range(2):
        with server, Client(server.address) as client:
            client.compute(torch.ones(1))
