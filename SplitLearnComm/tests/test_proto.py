import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool

from splitlearn_comm import GRPCComputeServer
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.testing import RunningSumHost

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_proto.py"
TOOLS = Path(os.environ.get("SPLITLEARN_PROTO_VENV", ROOT / ".venv-proto")) / "pinned.txt"


def test_the_descriptors_keep_the_names_of_the_files() -> None:
    assert pb.DESCRIPTOR.name == "splitlearn/v1/compute.proto"
    assert descriptor_pool.Default().FindFileByName("splitlearn/v1/compute.proto") is not None


def test_every_field_of_the_protocol_has_a_comment() -> None:
    lines = (ROOT / "protos/splitlearn/v1/compute.proto").read_text().splitlines()
    in_oneof = False
    for before, line in itertools.pairwise(lines):
        in_oneof = ("oneof" in before or in_oneof) and line.strip() != "}"
        if "=" in line and line.startswith("  ") and not line.strip().startswith("//") and not in_oneof:
            assert "//" in before or "//" in line, f"no comment at: {line}"


@pytest.mark.skipif(
    not TOOLS.exists(), reason="the generator's environment is not made; scripts/generate_proto.py does"
)
def test_the_generated_code_is_up_to_date() -> None:
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_client_of_stock_protobuf_is_understood(sum_server: GRPCComputeServer) -> None:
    """Any language's generated code can speak to the server: message classes and gRPC, nothing of ours."""
    ones = pb.TensorData(data=bytes.fromhex("0000803f") * 8, shape=[1, 2, 4], dtype=pb.DTYPE_FLOAT32)
    service = "/splitlearn.v1.ComputeService/"
    with grpc.insecure_channel(sum_server.address) as channel:
        compute = channel.unary_unary(
            service + "Compute", pb.ComputeRequest.SerializeToString, pb.ComputeResponse.FromString
        )
        response = compute(pb.ComputeRequest(tensor=ones, use_cache=True))
        assert list(response.tensor.shape) == [1, 2, 4]
        assert response.tensor.data == bytes.fromhex("0000803f") * 4 + bytes.fromhex("00000040") * 4
        assert response.past_key_values.position == 2
        info = channel.unary_unary(
            service + "GetServiceInfo", pb.ServiceInfoRequest.SerializeToString, pb.ServiceInfo.FromString
        )(pb.ServiceInfoRequest())
        assert (info.name, info.hidden_size, info.dtype) == ("running sum", 4, pb.DTYPE_FLOAT32)
        health = channel.unary_unary(
            service + "HealthCheck", pb.HealthCheckRequest.SerializeToString, pb.HealthCheckResponse.FromString
        )(pb.HealthCheckRequest())
        assert health.serving


@pytest.mark.skipif(not importlib.util.find_spec("grpc_reflection"), reason="the server extra is not installed")
def test_reflection_tells_the_protocol() -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with GRPCComputeServer(RunningSumHost(), port=0) as server, grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol="splitlearn.v1.ComputeService")
        answer = next(iter(stub.ServerReflectionInfo(iter([ask]))))
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(f)
            for f in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert "splitlearn/v1/compute.proto" in [file.name for file in files]


def test_dtypes_of_torch_and_of_the_protocol_are_one_to_one() -> None:
    from splitlearn_comm.codec import DTYPES

    for number, dtype in DTYPES.items():
        assert pb.DType.Name(number) == "DTYPE_" + str(dtype).removeprefix("torch.").upper()  # type: ignore[arg-type]
        assert torch.empty(1, dtype=dtype).itemsize == dtype.itemsize
