"""What parameters of a call to load or unload mean, and which are refused."""

import json
from typing import Any

import pytest
import torch

from splitlearn_comm import InvalidRequestError
from splitlearn_manager._proto.inference import grpc_service_pb2 as pb
from splitlearn_manager.control.orders import load_order, unload_order
from splitlearn_manager.runtime.model_spec import ModelSpec


def parameter(value: Any) -> pb.ModelRepositoryParameter:
    kind = {bool: "bool_param", int: "int64_param", str: "string_param", bytes: "bytes_param"}[type(value)]
    return pb.ModelRepositoryParameter(**{kind: value})


def to_load(**parameters: Any) -> pb.RepositoryModelLoadRequest:
    values = {key: parameter(value) for key, value in parameters.items()}
    return pb.RepositoryModelLoadRequest(model_name="m", parameters=values)


def to_unload(**parameters: Any) -> pb.RepositoryModelUnloadRequest:
    values = {key: parameter(value) for key, value in parameters.items()}
    return pb.RepositoryModelUnloadRequest(model_name="m", parameters=values)


def test_parameters_and_the_same_as_json() -> None:
    said: dict[str, Any] = {"model": "gpt2", "split_points": "2,10", "dtype": "bfloat16", "version": 3, "revision": "r"}
    wanted = ModelSpec(
        name="m", model="gpt2", split_points=(2, 10), dtype=torch.bfloat16, version=3, revision="r", device="cpu"
    )
    assert load_order(to_load(**said, device="cpu")).spec() == wanted
    said["split_points"] = [2, 10]
    assert load_order(to_load(config=json.dumps(said), device="cpu")).spec() == wanted


def test_without_a_model_the_rest_stays_what_it_was() -> None:
    known = ModelSpec(name="m", model="gpt2", split_points=(2, 10), num_threads=2)
    order = load_order(to_load(num_threads=1))
    assert not order.is_complete
    assert order.spec(known) == ModelSpec(name="m", model="gpt2", split_points=(2, 10), num_threads=1)
    assert load_order(to_load(model="other")).spec(known) == ModelSpec(name="m", model="other")


def test_a_reload() -> None:
    assert load_order(to_load(reload=True)).is_reload
    assert not load_order(to_load(reload=False)).is_reload
    with pytest.raises(InvalidRequestError, match="a reload chooses the version itself"):
        load_order(to_load(reload=True, version=3))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"colour": "red"}, "unknown parameter 'colour'; there are model, version, revision, "),
        ({"name": "other"}, "unknown parameter 'name'"),
        ({"model": b"gpt2"}, "parameter model must be text"),
        ({"model": 3}, "model must be text; got 3"),
        ({"model": "gpt2", "split_points": "2"}, "split_points must be two whole numbers such as 2,6; got '2'"),
        ({"model": "gpt2", "dtype": "int8"}, "dtype must be one of float32, bfloat16, float16; got 'int8'"),
        ({"model": "gpt2", "kv_bytes": -1}, "kv_bytes must be a whole number of at least 0; got -1"),
        ({"reload": "yes"}, "parameter reload must be true or false; got 'yes'"),
        ({"config": "model: gpt2"}, "parameter config must be a JSON object"),
        ({"config": "[]"}, "parameter config must be a JSON object"),
        ({"config": '{"config": "{}"}'}, "unknown key 'config' in config"),
        ({"config": '{"name": "other"}'}, "unknown key 'name' in config"),
    ],
)
def test_what_cannot_be_loaded(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words.replace("[", r"\[")):
        load_order(to_load(**parameters)).spec(ModelSpec(name="m"))


def test_an_unload() -> None:
    order = unload_order(to_unload(unload_dependents=False))
    assert (order.name, order.version, order.drain_timeout_s) == ("m", None, None)
    order = unload_order(to_unload(version=2, drain_timeout_s="0.5", unload_dependents=True))
    assert (order.version, order.drain_timeout_s) == (2, 0.5)
    assert unload_order(to_unload(version="2", drain_timeout_s=3)).version == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"colour": "red"},
        {"version": "two"},
        {"version": True},
        {"drain_timeout_s": "soon"},
        {"drain_timeout_s": "-1"},
        {"drain_timeout_s": "nan"},
        {"drain_timeout_s": "inf"},
        {"unload_dependents": "no"},
    ],
)
def test_what_an_unload_cannot_say(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(parameters))):
        unload_order(to_unload(**parameters))
