"""Which failures of gRPC's own are tried again: one table."""

import math

import grpc
import pytest

from splitlearn_comm.client.failures import RETRY_RULES, is_retried, translate, worth_another_round
from splitlearn_comm.errors import (
    CODES,
    AddressInUseError,
    MessageTooLargeError,
    ResourceExhaustedError,
    ServerUnavailableError,
    ServiceNotFoundError,
)
from splitlearn_comm.framing.service import decode_error, encode_error
from splitlearn_comm.protocol import KIND_METADATA, PUSHBACK_METADATA


class Failed(grpc.RpcError):
    """A call that ended with a code, as gRPC raises it."""

    def __init__(
        self, code: grpc.StatusCode, metadata: tuple[tuple[str, str], ...] = (), details: str = "it ended"
    ) -> None:
        self._code, self._metadata, self._details = code, metadata, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_code_is_retried_as_the_table_says(code: grpc.StatusCode) -> None:
    error = translate(Failed(code), "localhost:1", 1.0)
    assert isinstance(error, ServerUnavailableError) == RETRY_RULES[code].is_retried


def test_a_stream_that_a_proxy_resets_is_one_that_broke() -> None:
    """nginx does that when it has lost the server behind it; a server of ours says which error it is."""
    reset = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"
    assert is_retried(translate(Failed(grpc.StatusCode.INTERNAL, details=reset), "localhost:1", 1.0))
    told = ((KIND_METADATA, "RemoteInternalError"),)
    assert not is_retried(translate(Failed(grpc.StatusCode.INTERNAL, told, reset), "localhost:1", 1.0))


def test_what_to_do_comes_first_and_what_grpc_says_last() -> None:
    said = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused (111)"
    error = translate(Failed(grpc.StatusCode.UNAVAILABLE, details=said), "localhost:1", 1.0)
    assert str(error) == (
        "nothing listens at localhost:1; is the server started, and is this its address? (Connection refused (111))"
    )
    error = translate(Failed(grpc.StatusCode.UNAVAILABLE, details="x" * 999), "localhost:1", 1.0)
    assert len(str(error)) < 300
    error = translate(Failed(grpc.StatusCode.DEADLINE_EXCEEDED), "localhost:1", 1.0)
    assert str(error).startswith("no answer from localhost:1 within 1 s; another call may still be running there")


def test_the_table_has_each_code_once_and_a_reason_for_each() -> None:
    assert set(RETRY_RULES) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert all(rule.reason for rule in RETRY_RULES.values())


def test_only_what_a_server_does_not_answer_is_retried() -> None:
    retried = {cls for cls, code in CODES.items() if RETRY_RULES[code].is_retried}
    assert retried == {ServerUnavailableError, AddressInUseError}  # the second is raised where a server starts


def test_a_refusal_is_tried_again_only_where_the_server_said_when() -> None:
    assert is_retried(ResourceExhaustedError("soon", retry_after_s=0.1))
    assert not is_retried(ResourceExhaustedError("full"))
    assert not is_retried(MessageTooLargeError("larger than max"))
    assert [code for code, rule in RETRY_RULES.items() if rule.is_retried_if_told_when] == [
        grpc.StatusCode.RESOURCE_EXHAUSTED
    ]


@pytest.mark.parametrize(
    ("said", "retry_after_s"),
    [
        ("250", 0.25),
        ("0", None),
        ("-1000", None),
        ("nan", None),
        ("\u00b2", None),
        ("9" * 5000, None),
        ("9" * 19, 86400.0),
    ],
)
def test_when_to_ask_again_is_a_time_that_can_be_waited(said: str, retry_after_s: float | None) -> None:
    metadata = ((KIND_METADATA, "ResourceExhaustedError"), (PUSHBACK_METADATA, said))
    error = translate(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, metadata), "localhost:1", 1.0)
    assert isinstance(error, ResourceExhaustedError)
    assert error.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("said", "retry_after_s"),
    [(0.25, 0.25), (0.0, None), (-1.0, None), (math.nan, None), (math.inf, None), (1e300, 86400.0)],
)
def test_and_so_it_is_inside_a_session(said: float, retry_after_s: float | None) -> None:
    sent = encode_error(ResourceExhaustedError("busy", retry_after_s=said))
    error = decode_error(sent)
    assert isinstance(error, ResourceExhaustedError)
    assert error.retry_after_s == retry_after_s


def test_of_several_replicas_the_one_that_said_when_is_waited_for_and_then_one_that_may_come_back() -> None:
    soon, full = ResourceExhaustedError("soon", retry_after_s=0.1), ResourceExhaustedError("full")
    away, other = ServerUnavailableError("away"), ServiceNotFoundError("there is small")
    assert worth_another_round([("a", away), ("b", soon), ("c", full)]) is soon
    assert worth_another_round([("a", full), ("b", away), ("c", other)]) is away
    assert worth_another_round([("a", full)]) is full
    assert worth_another_round([("a", full), ("b", other)]) is full
    assert worth_another_round([("a", other)]) is other


def test_where_none_serves_it_what_each_serves_is_said() -> None:
    errors = [("a:1", ServiceNotFoundError("there is small")), ("b:1", ServiceNotFoundError("there is large"))]
    error = worth_another_round(errors)
    assert isinstance(error, ServiceNotFoundError)
    assert str(error) == "at a:1: there is small; at b:1: there is large"
