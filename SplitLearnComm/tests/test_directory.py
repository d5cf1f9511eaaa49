"""Several services at one address."""

import asyncio
from collections.abc import Callable, Iterator

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitlearn_comm import (
    AsyncComputeClient,
    FingerprintMismatchError,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    HostDirectory,
    Lease,
    NamedHosts,
    ServiceNotFoundError,
    SingleHost,
    Wanted,
)
from splitlearn_comm.function_host import FunctionHost
from splitlearn_comm.testing import Identity, RunningSumHost, eventually


@pytest.fixture
def hosts() -> dict[str, RunningSumHost]:
    return {"narrow": RunningSumHost(2, fingerprint="two"), "wide": RunningSumHost(4, fingerprint="four")}


@pytest.fixture
def address(hosts: dict[str, RunningSumHost]) -> Iterator[str]:
    with GRPCComputeServer(NamedHosts(hosts), port=0) as server:
        yield server.address


def test_sessions_and_calls_go_to_the_model_they_name(address: str, hosts: dict[str, RunningSumHost]) -> None:
    for name, width in (("narrow", 2), ("wide", 4)):
        with GRPCComputeClient(address, model=name) as client, client.session() as session:
            assert client.get_info().hidden_size == width
            assert torch.equal(client.compute(torch.ones(1, 3, width))[0, 2], torch.full((width,), 3.0))
            assert torch.equal(session.step(torch.ones(1, 2, width))[0, 1], torch.full((width,), 2.0))
            assert hosts[name].num_sessions == 1
    assert {host.num_sessions for host in hosts.values()} == {0}


def test_an_asyncio_client_names_it_too(address: str) -> None:
    async def step() -> torch.Tensor:
        async with AsyncComputeClient(address, model="wide") as client, client.session() as session:
            return await session.step(torch.ones(1, 1, 4))

    assert asyncio.run(step()).shape == (1, 1, 4)


def test_a_client_that_names_none_is_told_what_there_is(address: str) -> None:
    with GRPCComputeClient(address) as client:
        for call in (client.get_info, client.session, lambda: client.compute(torch.ones(1, 1, 2))):
            with pytest.raises(ServiceNotFoundError, match=r"several models .* one of narrow, wide"):
                call()


def test_the_expected_fingerprint_names_it_as_well(address: str) -> None:
    with GRPCComputeClient(address) as client:
        with client.session(expected_fingerprint="four") as session:
            assert session.step(torch.ones(1, 1, 4)).shape == (1, 1, 4)
        assert client.compute(torch.ones(1, 1, 2), expected_fingerprint="two").shape == (1, 1, 2)


def test_a_name_and_a_fingerprint_have_to_go_together(address: str, hosts: dict[str, RunningSumHost]) -> None:
    with GRPCComputeClient(address, model="wide") as client, pytest.raises(FingerprintMismatchError, match="two"):
        client.session(expected_fingerprint="two")
    assert hosts["wide"].num_sessions == 0


def test_a_model_that_is_not_there_is_named_with_those_that_are(address: str) -> None:
    with GRPCComputeClient(address, model="huge") as client, pytest.raises(ServiceNotFoundError, match=r"huge .*wide"):
        client.session()


def test_health_knows_each_model(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "narrow", "wide"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == 1


def test_one_host_is_found_without_a_name_and_under_its_own() -> None:
    directory = SingleHost(FunctionHost(Identity()))
    (name,) = directory.names()
    assert directory.lease(Wanted()).host is directory.lease(Wanted(name=name)).host
    for wanted in (Wanted(name="other"), Wanted(version="2")):
        with pytest.raises(ServiceNotFoundError):
            directory.lease(wanted)


class Counting(HostDirectory):
    """One host, leased; tells who holds it."""

    def __init__(self) -> None:
        self.host, self.held = RunningSumHost(), 0

    def names(self) -> tuple[str, ...]:
        return ("sum",)

    def lease(self, wanted: Wanted) -> Lease:
        self.held += 1
        return Lease(self.host, self._give_back)

    def _give_back(self) -> None:
        self.held -= 1


@pytest.mark.parametrize("end", [lambda session: session.close(), lambda session: session._drop_stream()])
def test_a_lease_lasts_as_long_as_its_session(end: Callable[..., None]) -> None:
    directory = Counting()

    config = GRPCServerConfig(detached_session_timeout_s=0.1)
    with GRPCComputeServer(directory, port=0, config=config) as server, GRPCComputeClient(server.address) as client:
        session = client.session()
        session.step(torch.ones(1, 1, 4))
        assert directory.held == 1
        end(session)
        eventually(lambda: directory.held == 0)
        with pytest.raises(FingerprintMismatchError):
            client.session(expected_fingerprint="another")
        client.compute(torch.ones(1, 1, 4))
        eventually(lambda: directory.held == 0)
        left = client.session()
        assert directory.held == 1
    assert directory.held == 0
    assert left is not None
