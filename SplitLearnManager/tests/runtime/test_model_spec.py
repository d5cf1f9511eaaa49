"""What is to be hosted: checked once, and the same after it travelled."""

from typing import Any

import pytest
import torch

from splitlearn_manager.runtime.model_spec import ModelSpec


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(name="a"),
        ModelSpec(name="a.b-C_9", model="/some/where", version=3, revision="main", split_points=(2, 10)),
        ModelSpec(name="a", device="cuda:1", dtype=torch.bfloat16, attn_implementation="sdpa", num_threads=4),
        ModelSpec(name="a", kv_bytes=0, activation_bytes=1, compile=True),
        ModelSpec(name="a", max_trainings=1, allow_full_training=False, training_bytes=1, pass_timeout_s=0.5),
    ],
)
def test_it_is_the_same_after_it_travelled(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": ""}, "1 to 128 letters"),
        ({"name": "../a"}, "1 to 128 letters"),
        ({"name": "a" * 129}, "1 to 128 letters"),
        ({"name": "a", "version": 0}, "version must be a whole number of at least 1; got 0"),
        ({"name": "a", "kv_bytes": -1}, "kv_bytes must be a whole number of at least 0; got -1"),
        ({"name": "a", "activation_bytes": 1.5}, "activation_bytes must be a whole number"),
        ({"name": "a", "num_threads": 0}, "num_threads must be a whole number of at least 1; got 0"),
        ({"name": "a", "num_threads": True}, "num_threads must be a whole number of at least 1; got True"),
        ({"name": "a", "training_bytes": -1}, "training_bytes must be a whole number of at least 0; got -1"),
        ({"name": "a", "pass_timeout_s": 0}, "pass_timeout_s must be a number greater than zero; got 0"),
        ({"name": "a", "max_trainings": 0}, "max_trainings must be a whole number of at least 1; got 0"),
        ({"name": "a", "allow_full_training": 1}, "allow_full_training must be true, false or None; got 1"),
        ({"name": "a", "compile": "yes"}, "compile must be true or false; got 'yes'"),
        ({"name": "a", "dtype": "float32"}, "dtype must be a torch.dtype"),
    ],
)
def test_what_is_wrong_is_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelSpec(**wrong)


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(TypeError, match="unknown keys of a model: colour"):
        ModelSpec.from_json('{"name": "a", "colour": "red"}')
