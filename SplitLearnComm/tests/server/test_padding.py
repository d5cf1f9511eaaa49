"""Health checks that measure the bandwidth: what is sent comes back, within bounds, and counts."""

import grpc
import pytest

from splitlearn_comm import ClientLimits, GRPCComputeServer, GRPCServerConfig, protocol
from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.framing.service import (
    MAX_PADDING_BYTES,
    decode_health,
    decode_health_padding,
    decode_health_question,
    encode_health_question,
)
from splitlearn_comm.testing import Identity


def asked(server: GRPCComputeServer, *questions: bytes) -> list[bytes]:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(protocol.HEALTH_CHECK, None, None)
        return [call(question, timeout=10) for question in questions]


def test_the_padding_comes_back_with_the_answer() -> None:
    padding = bytes(range(256)) * (MAX_PADDING_BYTES // 256)
    with GRPCComputeServer(Identity(), port=0) as server:
        for sent, reply in zip((padding, b""), asked(server, encode_health_question(padding), b""), strict=True):
            assert decode_health(reply).serving
            assert decode_health_padding(reply) == sent


def test_more_than_the_bound_is_refused() -> None:
    question = encode_health_question(bytes(MAX_PADDING_BYTES + 1))
    with pytest.raises(InvalidRequestError, match="262145 bytes of padding: at most 262144"):
        decode_health_question(question)
    with GRPCComputeServer(Identity(), port=0) as server, pytest.raises(grpc.RpcError) as refused:
        asked(server, question)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_it_counts_against_the_clients_limit() -> None:
    limits = ClientLimits(bytes_per_s=1000)
    config = GRPCServerConfig(client_limits=limits)
    with GRPCComputeServer(Identity(), port=0, config=config) as server, pytest.raises(grpc.RpcError) as refused:
        asked(server, *[encode_health_question(bytes(100_000))] * 3)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
