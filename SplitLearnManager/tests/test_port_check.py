"""A port in use is noticed before a model is loaded, in the words in which the server itself says it."""

import socket
from collections.abc import Iterator

import pytest

from splitlearn_comm import AddressInUseError, GRPCComputeServer
from splitlearn_comm.testing import Identity
from splitlearn_manager import ManagedServer
from splitlearn_manager.port_check import check_port_is_free


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_a_port_in_use_is_said_before_the_model_is_looked_for(listening: socket.socket) -> None:
    with pytest.raises(AddressInUseError, match=f"cannot listen on 127.0.0.1:{port_of(listening)}: "):
        ManagedServer("./no/such/model", port=port_of(listening))


def test_what_is_no_port_is_said_before_the_model_is_looked_for() -> None:
    with pytest.raises(ValueError, match="port must be 0 to 65535, came 70000"):
        ManagedServer("./no/such/model", port=70000)
    with pytest.raises(ValueError, match=r"say host=.127\.0\.0\.1., port=50051"):
        ManagedServer("./no/such/model", host="127.0.0.1:50051")


def test_the_words_are_the_servers(listening: socket.socket) -> None:
    with pytest.raises(AddressInUseError) as checked:
        check_port_is_free("127.0.0.1", port_of(listening))
    with pytest.raises(AddressInUseError) as bound:
        GRPCComputeServer(Identity(), port=port_of(listening)).start(block=False)
    assert str(checked.value) == str(bound.value)


def test_all_interfaces_meet_who_listens_on_one(listening: socket.socket) -> None:
    with pytest.raises(AddressInUseError, match=r"cannot listen on 0\.0\.0\.0:"):
        check_port_is_free("0.0.0.0", port_of(listening))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine(host: str) -> None:
    with pytest.raises(AddressInUseError, match=f"{host!r} is no address of this machine"):
        check_port_is_free(host, 50051)


def test_a_free_port_stays_free(listening: socket.socket) -> None:
    port = port_of(listening)
    listening.close()
    check_port_is_free("127.0.0.1", port)
    check_port_is_free("localhost", port)
    with GRPCComputeServer(Identity(), port=port) as server:
        assert server.port == port


def test_a_port_whose_last_connections_linger_is_free(listening: socket.socket) -> None:
    port = port_of(listening)
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = listening.accept()
        listening.close()
        accepted.close()  # first, so that the lingering is on this side
        assert client.recv(1) == b""
    check_port_is_free("127.0.0.1", port)


def test_port_0_is_always_free() -> None:
    check_port_is_free("127.0.0.1", 0)
