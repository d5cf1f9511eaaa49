"""`ServerConfig`: what it refuses, and that all of it reaches the wire."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from splitlearn_comm.server import ClientLimits, GRPCServerConfig, ServerTLS, TokenFile
from splitlearn_manager import ServerConfig
from splitlearn_manager.listening import comm_config


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(TypeError, match="max_sesions"):
        ServerConfig(max_sesions=3)  # type: ignore[call-arg]


NUMBERS = [item.name for item in fields(ServerConfig) if type(item.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, "3", None, True, float("nan")])
def test_numbers_are_greater_than_zero(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number greater than zero; got {value!r}"):
        ServerConfig(**{name: value})


@pytest.mark.parametrize("name", ["max_cached_tokens", "max_cache_bytes", "max_training_bytes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_limits_of_caches_are_whole_numbers_or_none(name: str, value: Any) -> None:
    assert getattr(ServerConfig(**{name: None}), name) is None
    with pytest.raises(ValueError, match=f"{name} must be a whole number greater than zero, or None; got {value!r}"):
        ServerConfig(**{name: value})


def test_a_switch_is_true_or_false() -> None:
    assert ServerConfig(refuse_nonfinite=False).refuse_nonfinite is False
    with pytest.raises(ValueError, match="refuse_nonfinite must be True or False; got 0"):
        ServerConfig(refuse_nonfinite=0)  # type: ignore[arg-type]


def test_nothing_is_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        ServerConfig().max_sessions = 3  # type: ignore[misc]


def test_every_setting_of_the_wire_is_handed_on() -> None:
    wired = {item.name for item in fields(GRPCServerConfig)}
    values: dict[str, Any] = {name: index + 2 for index, name in enumerate(NUMBERS) if name in wired}
    values |= {"refuse_nonfinite": False, "allow_insecure": True, "open_reflection": True}
    values |= {
        "tls": ServerTLS(certificate="c", key="k"),
        "tokens": TokenFile("t"),
        "client_limits": ClientLimits(max_calls=3),
    }
    assert values.keys() == wired
    wire = comm_config(ServerConfig(**values))
    assert {name: getattr(wire, name) for name in values} == values


@pytest.mark.parametrize("operators", ["ops", ["ops"], ("",), (3,)])
def test_operators_are_names(operators: Any) -> None:
    with pytest.raises(ValueError, match="operators must be a tuple of names; got "):
        ServerConfig(operators=operators, tokens=TokenFile("t"))


def test_operators_need_to_be_known() -> None:
    with pytest.raises(ValueError, match="operators are known by their tokens or certificates"):
        ServerConfig(operators=("ops",), tls=ServerTLS(certificate="c", key="k"))
    by_certificate = ServerTLS(certificate="c", key="k", client_ca="a")
    assert ServerConfig(operators=("certificate:ops",), tls=by_certificate).is_by_name
