"""What gRPC raises at a client, turned into this package's errors; the one edge where that happens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from splitlearn_comm.client.credentials import explained
from splitlearn_comm.client.deadline import AFTER_TIMEOUT
from splitlearn_comm.errors import (
    CommError,
    DeadlineExceededError,
    MessageTooLargeError,
    ResourceExhaustedError,
    ServerUnavailableError,
    ServiceNotFoundError,
    UnsupportedOperationError,
    error_class,
)
from splitlearn_comm.framing.service import told_wait_s
from splitlearn_comm.protocol import DRAINING_METADATA, KIND_METADATA, PUSHBACK_METADATA, REQUEST_ID_METADATA, SERVICE

# gRPC's own words are long, and for people who know it.
_MAX_CHARACTERS = 200
# Of as many digits as an integer of 64 bits may have.
_DIGITS = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class RetryRule:
    """Whether the same is asked for again after a failure, and why."""

    is_retried: bool
    reason: str
    is_retried_if_told_when: bool = False
    """Whether it is asked for again where the server has said after how long."""


_Code = grpc.StatusCode
RETRY_RULES: Final[Mapping[grpc.StatusCode, RetryRule]] = {
    _Code.UNAVAILABLE: RetryRule(True, "the server is gone, starting or stopping; another, or it itself, may be there"),
    _Code.CANCELLED: RetryRule(True, "the connection ended under the call; nobody here cancelled it"),
    _Code.DEADLINE_EXCEEDED: RetryRule(False, "the time was given for all attempts together, and it is over"),
    _Code.RESOURCE_EXHAUSTED: RetryRule(
        False, "it was refused and not done; without retry_after_s the caller knows what it can do without", True
    ),
    _Code.NOT_FOUND: RetryRule(False, "the same call finds nothing again; a lost session is rebuilt instead"),
    _Code.FAILED_PRECONDITION: RetryRule(False, "the two ends do not agree, on the model or on the step"),
    _Code.INVALID_ARGUMENT: RetryRule(False, "the request itself is wrong"),
    _Code.OUT_OF_RANGE: RetryRule(False, "the sequence does not become shorter"),
    _Code.UNAUTHENTICATED: RetryRule(False, "the token does not become right"),
    _Code.PERMISSION_DENIED: RetryRule(False, "what is not allowed is not allowed a second time"),
    _Code.UNIMPLEMENTED: RetryRule(False, "the service does not have it"),
    _Code.INTERNAL: RetryRule(False, "a fault in the code would come again, and a step may be half done"),
    _Code.UNKNOWN: RetryRule(False, "it may have been done"),
    _Code.ABORTED: RetryRule(False, "no server of this package says it"),
    _Code.ALREADY_EXISTS: RetryRule(False, "what is there already stays there"),
    _Code.DATA_LOSS: RetryRule(False, "no server of this package says it"),
}
"""Which failures are tried again: those that become a `ServerUnavailableError`, and refusals that say when to come
back. Whatever is retried is safe to repeat: a call keeps nothing, and a step that was done is answered from memory."""


def is_retried(error: CommError) -> bool:
    """Whether the same may be asked for again after this error, as the table says."""
    rule = RETRY_RULES[error.code]
    is_told = isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None
    return rule.is_retried or (rule.is_retried_if_told_when and is_told)


def worth_another_round(failures: Sequence[tuple[str, CommError]]) -> CommError:
    """The one, of the failures at all addresses, that says when to ask again: a server that told when comes first, then
    one that may come back; those that have no room have said no. Where none serves what is asked for, all that they
    serve is said."""
    errors = [error for _, error in failures]
    told = (e for e in errors if isinstance(e, ResourceExhaustedError) and is_retried(e))
    if (worth := next(told, None) or next((e for e in errors if is_retried(e)), None)) is not None:
        return worth
    said = [(address, error) for address, error in failures if isinstance(error, ServiceNotFoundError)]
    if 1 < len(said) == len(failures):
        return type(said[-1][1])("; ".join(f"at {address}: {error}" for address, error in said))
    return next((e for e in errors if not isinstance(e, ServiceNotFoundError)), errors[-1])


def translate(error: grpc.RpcError, address: str, timeout_s: float) -> CommError:
    """The error to raise for a failed call.

    Args:
        error: What gRPC raised, from a synchronous or an asyncio call.
        address: Where the call went.
        timeout_s: How long it might have taken.
    """
    # Both kinds of call raise something that has these three; the stubs know only one.
    failure: Any = error
    code, details = failure.code(), failure.details() or ""
    metadata: dict[str, str | bytes] = dict(failure.trailing_metadata() or ())
    kind, request_id = str(metadata.get(KIND_METADATA, "")), str(metadata.get(REQUEST_ID_METADATA, ""))
    if kind:
        told = error_class(code, kind)(details, request_id=request_id or None)
        if isinstance(told, ResourceExhaustedError):
            told.retry_after_s = _seconds(metadata.get(PUSHBACK_METADATA))
        return told
    return _without_kind(code, details, address, timeout_s)


def calls_away(trailing_metadata: Sequence[tuple[str, str | bytes]] | None) -> bool:
    """Whether what came with the end of a stream says that its session should be taken elsewhere."""
    return any(key == DRAINING_METADATA for key, _ in trailing_metadata or ())


def gone(address: str, details: str) -> ServerUnavailableError:
    """The error for a server that cannot be reached."""
    advice = explained(details)
    if advice is not None:
        return ServerUnavailableError(f"no connection to the server at {address}: {advice} ({details})")
    if "refused" in details or "failed to connect" in details.lower():
        return ServerUnavailableError(
            f"nothing listens at {address}; is the server started, and is this its address? ({_last_of(details)})"
        )
    return ServerUnavailableError(f"the server at {address} cannot be reached or went away: {_shortened(details)}")


def _last_of(details: str) -> str:
    """The end of what gRPC says of a connection, which is what happened; before that is whom it asked for it."""
    return _shortened(details.rpartition(": ")[2])


def _shortened(details: str) -> str:
    return details if len(details) <= _MAX_CHARACTERS else f"{details[:_MAX_CHARACTERS]} …"


def _without_kind(code: grpc.StatusCode, details: str, address: str, timeout_s: float) -> CommError:
    """The error for a failure of gRPC's own, or of a server that is none of ours."""
    if RETRY_RULES[code].is_retried:
        return gone(address, details)
    match code:
        case grpc.StatusCode.INTERNAL if "RST_STREAM" in details:
            # A server of ours says which error it is; so a proxy says that it has lost the server behind it.
            return gone(address, details)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError(f"no answer from {address} within {timeout_s:g} s; {AFTER_TIMEOUT}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return MessageTooLargeError(
                f"{details}; send less at once, or raise max_message_bytes at the client and at the server"
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return UnsupportedOperationError(f"what listens at {address} does not serve {SERVICE}: {details}")
        case _:
            return error_class(code)(f"{code.name} from {address}: {details}")


def _seconds(pushback_ms: str | bytes | None) -> float | None:
    """What a server says about when to ask again; None if that is no number above 0."""
    if not isinstance(pushback_ms, str) or not _DIGITS.fullmatch(pushback_ms):
        return None
    return told_wait_s(int(pushback_ms) / 1000)
