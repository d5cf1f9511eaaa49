import signal
import socket
import threading

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitlearn_comm import AddressInUseError, GRPCComputeServer, GRPCServerConfig, ResourceExhaustedError, ServiceInfo
from splitlearn_comm.codec import codec_names
from splitlearn_comm.protocol import SERVICE
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import Identity, RunningSumHost, ServerProcess, eventually


def test_the_snippet_of_the_readme() -> None:
    with GRPCComputeServer(Identity(), port=0) as server:
        assert server.address == f"127.0.0.1:{server.port}"
        assert torch.equal(Client(server.address).compute(torch.ones(3)), torch.ones(3))


def test_a_port_in_use_is_named_and_the_service_not_set_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host = Noting()
        with pytest.raises(AddressInUseError, match=f"127.0.0.1:{port}: port {port} is in use"):
            GRPCComputeServer(host, port=port).start(block=False)
    assert host.calls == []


def test_two_servers_do_not_share_a_port() -> None:
    with GRPCComputeServer(Identity(), port=0) as server, pytest.raises(AddressInUseError):
        GRPCComputeServer(Identity(), port=server.port).start()


class Noting(RunningSumHost):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    async def setup(self) -> None:
        self.calls.append("setup")

    async def teardown(self) -> None:
        self.calls.append(f"teardown with {self.num_sessions} sessions")


def test_a_host_is_set_up_once_and_torn_down_when_its_sessions_are_closed() -> None:
    host = Noting()
    server = GRPCComputeServer(host, port=0)
    with server, Client(server.address) as client:
        client.session().step(torch.ones(1, 1, 4))
        with pytest.raises(RuntimeError, match="running already"):
            server.start(block=False)
    server.stop()
    assert host.calls == ["setup", "teardown with 0 sessions"]


def test_a_server_may_be_started_again_on_its_port() -> None:
    server = GRPCComputeServer(Identity(), port=0)
    for _ in range(2):
        with server, Client(server.address) as client:
            client.compute(torch.ones(1))
    assert server.statistics().computes == 1


class NotReady(RunningSumHost):
    async def setup(self) -> None:
        raise FileNotFoundError("no weights")


def test_a_setup_that_fails_is_raised_by_start_and_frees_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = GRPCComputeServer(NotReady(), port=port)
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="no weights"):
            server.start()
    assert not server.is_running
    server.stop()
    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_blocking_server_with_status_zero(number: signal.Signals) -> None:
    with ServerProcess("splitlearn_comm.testing:RunningSumHost") as process, Client(process.address) as client:
        session = client.session()
        session.step(torch.ones(1, 1, 4))
        assert process.interrupt(number) == 0


def test_a_server_that_blocks_in_another_thread_is_stopped_from_this_one() -> None:
    server = GRPCComputeServer(Identity(), port=0)
    thread = threading.Thread(target=server.start)
    thread.start()
    eventually(lambda: server.is_running)
    server.stop()
    thread.join()


def test_health_is_told_in_both_ways(sum_server: GRPCComputeServer, client: Client) -> None:
    assert client.health()
    with grpc.insecure_channel(sum_server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            status = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_everything_a_host_says_arrives() -> None:
    info = ServiceInfo(
        name="n",
        fingerprint="f",
        split_points=(0, 10),
        num_layers=12,
        hidden_size=768,
        dtype=torch.bfloat16,
        max_positions=1024,
        model_type="gpt2",
        cache_kinds=("keys-values", "sliding"),
        stateful=True,
        version="1",
        max_message_bytes=1_000_000,
        codecs=codec_names()[1:],
        extra={"a": "b"},
    )

    class Speaking(Identity):
        def get_info(self) -> ServiceInfo:
            return info

    config = GRPCServerConfig(max_message_bytes=1_000_000)
    with GRPCComputeServer(Speaking(), port=0, config=config) as server, Client(server.address) as client:
        assert client.get_info() == info
        assert client.get_info() is client.get_info()


def test_there_is_room_for_so_many_sessions() -> None:
    config = GRPCServerConfig(max_sessions=2)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server, Client(server.address) as client:
        first = client.session()
        with client.session(), pytest.raises(ResourceExhaustedError, match="2 sessions open"):
            client.session()
        with client.session():
            first.close()


@pytest.mark.parametrize("name", ["max_message_bytes", "max_sessions", "idle_session_timeout_s", "drain_timeout_s"])
def test_limits_are_checked_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than zero, came 0"):
        GRPCServerConfig(**{name: 0})


def test_bytes_are_counted(sum_server: GRPCComputeServer, client: Client) -> None:
    client.compute(torch.ones(1, 2, 4))
    statistics = sum_server.statistics()
    assert 32 < statistics.bytes_received < 64
    assert 32 < statistics.bytes_sent < 64
