"""Reflection tells of the control services too."""

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from splitlearn_manager import ModelServer

INFERENCE, CONTROL = "inference.GRPCInferenceService", "splitlearn.v1.ControlService"


def test_the_index_is_asked_for_with_nothing_but_what_reflection_tells() -> None:
    reflection: Any = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
    with ModelServer(port=0) as server, grpc.insecure_channel(server.address) as channel:
        database = reflection.ProtoReflectionDescriptorDatabase(channel)
        assert {INFERENCE, CONTROL} <= set(database.get_services())
        pool = DescriptorPool(database)
        assert "Drain" in pool.FindServiceByName(CONTROL).methods_by_name
        method = pool.FindServiceByName(INFERENCE).methods_by_name["RepositoryIndex"]
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        ask = channel.unary_unary(f"/{INFERENCE}/{method.name}", request.SerializeToString, response.FromString)
        assert list(ask(request(), timeout=20).models) == []
