"""What strangers find a server with: gRPC reflection, as grpcurl uses it, and the stock health client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitlearn_comm import GRPCComputeServer
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.testing import RunningSumHost

SERVICE = "splitlearn.v1.ComputeService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def server() -> Iterator[GRPCComputeServer]:
    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        yield server


@pytest.fixture
def channel(server: GRPCComputeServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


@pytest.fixture
def database(channel: grpc.Channel) -> Any:
    """What is told by reflection, read as a client that holds no .proto does."""
    name = "grpc_reflection.v1alpha.proto_reflection_descriptor_database"
    return pytest.importorskip(name).ProtoReflectionDescriptorDatabase(channel)


def described(field: FieldDescriptor) -> tuple[str, int, int, str]:
    inside = field.message_type or field.enum_type
    return field.name, field.number, field.type, inside.full_name if inside else ""


def test_reflection_finds_the_service_and_every_message(database: Any) -> None:
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    pool = DescriptorPool(database)
    methods = {method.name for method in pool.FindServiceByName(SERVICE).methods}
    assert methods == {"Compute", "Session", "HealthCheck", "GetServiceInfo", "WatchStatistics"}
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        found = pool.FindMessageTypeByName(f"splitlearn.v1.{name}")
        assert [described(field) for field in found.fields] == [described(field) for field in message.fields]


def test_a_call_can_be_made_with_nothing_but_what_reflection_tells(channel: grpc.Channel, database: Any) -> None:
    pool = DescriptorPool(database)
    method = pool.FindServiceByName(SERVICE).methods_by_name["GetServiceInfo"]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    ask = channel.unary_unary(f"/{SERVICE}/{method.name}", request.SerializeToString, response.FromString)
    info = ask(request(), timeout=20)
    assert (info.name, info.hidden_size) == ("running sum", 4)


@pytest.mark.parametrize("name", ["", SERVICE, "running sum"])
def test_health_has_a_name_for_the_server_the_service_and_what_is_served(channel: grpc.Channel, name: str) -> None:
    request = health_pb2.HealthCheckRequest(service=name)
    assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status == SERVING


def test_health_knows_no_other_name(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="another"), timeout=20)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", SERVICE, "running sum"])
def test_who_watches_is_told_when_the_server_stops(server: GRPCComputeServer, channel: grpc.Channel, name: str) -> None:
    told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=20)
    assert next(told).status == SERVING
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop)
        assert next(told).status == NOT_SERVING
        told.cancel()  # a server that stops gives those who still listen its whole grace time
        stopping.result()
