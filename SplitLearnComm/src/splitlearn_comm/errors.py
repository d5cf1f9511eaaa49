"""The exceptions of this package, and their gRPC codes in one table.

CommError
├── InvalidRequestError (ValueError)          the request itself is wrong: dtype, rank, size, NaN
├── SequenceTooLongError (ValueError)         more tokens than the model has positions for
├── SessionNotFoundError (LookupError)        no such session, or no longer
├── ServiceNotFoundError (LookupError)        nothing of that name is served at this address
│   └── AdapterNotFoundError                  nor has this client an adapter of that name there
├── PassExpiredError (LookupError)            a training pass whose activations are not kept any more
├── StaleGradientError                        a gradient of a forward that other weights made
├── StepOrderError                            a step came too late, too early or at the wrong position
├── FingerprintMismatchError (ValueError)     the two ends hold parts of different models
├── MessageTooLargeError (ValueError)         a message over the limit of either side
├── ResourceExhaustedError                    the server has no room: sessions, memory
├── ServerUnavailableError (ConnectionError)  nothing listens there, or it went away
├── DeadlineExceededError (TimeoutError)      no answer in time
├── ClientClosedError (RuntimeError)          the client or the session was closed here, while or before it was used
├── AddressInUseError (OSError)               a server cannot listen where it was told to
├── AuthenticationError (PermissionError)     one end could not prove who it is: token, certificate
├── PermissionDeniedError (PermissionError)   who it is was proven, and it may not do this
├── UnsupportedOperationError                 the service cannot do this
└── RemoteInternalError                       a fault of the server; its log has it under the request id

The class of an error travels by its name beside the gRPC code, so that the client raises what the server raised.
"""

from __future__ import annotations

import grpc


class CommError(Exception):
    """Anything that goes wrong between a client and a server.

    Attributes:
        request_id: Names the failure in the server's log; None if it never reached a server.
    """

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code this kind of error travels under."""
        return next(CODES[cls] for cls in type(self).__mro__ if cls in CODES)


class InvalidRequestError(CommError, ValueError):
    """The request is wrong in itself: dtype, rank, size, a value that cannot be."""


class SequenceTooLongError(CommError, ValueError):
    """The sequence would be longer than the model has positions for."""


class SessionNotFoundError(CommError, LookupError):
    """The server has no such session: never had, expired, or lost."""


class ServiceNotFoundError(CommError, LookupError):
    """Nothing of that name and version is served at this address."""


class AdapterNotFoundError(ServiceNotFoundError):
    """This client has no adapter of that name there; whether another has, is not said."""


class PassExpiredError(CommError, LookupError):
    """A training pass whose activations the server keeps no more: its forward has to run again."""


class StaleGradientError(CommError):
    """The weights have changed since the forward whose gradient came."""


class StepOrderError(CommError):
    """A step was repeated too late, came ahead of its turn, or expects another position."""


class FingerprintMismatchError(CommError, ValueError):
    """Client and server hold parts of different models or checkpoints."""


class MessageTooLargeError(CommError, ValueError):
    """A message is larger than one of the two sides takes."""


class ResourceExhaustedError(CommError):
    """The server has no room for what was asked, or the client has asked for more than it may.

    Attributes:
        retry_after_s: After so many seconds the same may be asked for again; None if the server does not know.
    """

    def __init__(self, message: str, *, request_id: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.retry_after_s = retry_after_s


class ServerUnavailableError(CommError, ConnectionError):
    """Nothing listens at the address, or what listened is gone."""


class DeadlineExceededError(CommError, TimeoutError):
    """The answer did not come in time."""


class ClientClosedError(CommError, RuntimeError):
    """The client, or the session, was closed in its own process: before it was used, or while an answer was waited
    for."""


class AddressInUseError(CommError, OSError):
    """A server cannot listen on its address and port; raised in the server's own process."""


class AuthenticationError(CommError, PermissionError):
    """One end could not prove to the other who it is: a token is missing or wrong, a certificate is not trusted."""


class PermissionDeniedError(CommError, PermissionError):
    """The client has proven who it is, and may not do this."""


class UnsupportedOperationError(CommError):
    """The service does not offer this operation or takes no such argument."""


class RemoteInternalError(CommError):
    """The server failed in a way it did not expect; the cause is in its log under the request id."""


# Where two classes share a code, the first is what the code alone means.
CODES: dict[type[CommError], grpc.StatusCode] = {
    CommError: grpc.StatusCode.UNKNOWN,
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    SequenceTooLongError: grpc.StatusCode.OUT_OF_RANGE,
    SessionNotFoundError: grpc.StatusCode.NOT_FOUND,
    ServiceNotFoundError: grpc.StatusCode.NOT_FOUND,
    AdapterNotFoundError: grpc.StatusCode.NOT_FOUND,
    PassExpiredError: grpc.StatusCode.NOT_FOUND,
    StepOrderError: grpc.StatusCode.FAILED_PRECONDITION,
    StaleGradientError: grpc.StatusCode.FAILED_PRECONDITION,
    FingerprintMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ClientClosedError: grpc.StatusCode.FAILED_PRECONDITION,
    ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    MessageTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServerUnavailableError: grpc.StatusCode.UNAVAILABLE,
    AddressInUseError: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    UnsupportedOperationError: grpc.StatusCode.UNIMPLEMENTED,
    RemoteInternalError: grpc.StatusCode.INTERNAL,
}

_BY_NAME = {cls.__name__: cls for cls in CODES}


def error_class(code: grpc.StatusCode, kind: str = "") -> type[CommError]:
    """The exception class for an error that came over the wire.

    Args:
        code: Its gRPC status code.
        kind: The class name the server gave; ignored where it is unknown or does not go with the code.
    """
    named = _BY_NAME.get(kind)
    if named is not None and CODES[named] is code:
        return named
    return next((cls for cls, its_code in CODES.items() if its_code is code), CommError)
