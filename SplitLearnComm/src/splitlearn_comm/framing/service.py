"""What is said about a service and its errors, as bytes."""

from __future__ import annotations

import math
from typing import Final

import grpc

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import DTYPES, ENUMS
from splitlearn_comm.errors import CommError, InvalidRequestError, ResourceExhaustedError, error_class
from splitlearn_comm.framing.fields import parse
from splitlearn_comm.messages import ServiceInfo

MAX_PADDING_BYTES: Final = 256 * 1024
"""What a health check sends back at most, for a client that measures the bandwidth."""
_LONGEST_WAIT_S = 86400.0
_STATUS = {status.value[0]: status for status in grpc.StatusCode}


def encode_info(info: ServiceInfo) -> bytes:
    """The bytes of what a service says about itself."""
    start, end = info.split_points or (None, None)
    return pb.ServiceInfo(
        name=info.name,
        fingerprint=info.fingerprint,
        split_start=start,
        split_end=end,
        num_layers=info.num_layers,
        hidden_size=info.hidden_size,
        dtype=ENUMS[info.dtype] if info.dtype else pb.DTYPE_UNSPECIFIED,  # type: ignore[arg-type]
        max_positions=info.max_positions,
        model_type=info.model_type,
        cache_kinds=info.cache_kinds,
        stateful=info.stateful,
        version=info.version,
        max_message_bytes=info.max_message_bytes,
        extra=info.extra,
        codecs=info.codecs,
    ).SerializeToString()


def decode_info(data: bytes) -> ServiceInfo:
    """What the service says about itself. Raises `InvalidRequestError` if the bytes are malformed."""
    message = parse(pb.ServiceInfo, data)
    has = message.HasField
    return ServiceInfo(
        name=message.name,
        fingerprint=message.fingerprint if has("fingerprint") else None,
        split_points=(message.split_start, message.split_end) if has("split_start") and has("split_end") else None,
        num_layers=message.num_layers if has("num_layers") else None,
        hidden_size=message.hidden_size if has("hidden_size") else None,
        dtype=DTYPES.get(message.dtype),
        max_positions=message.max_positions if has("max_positions") else None,
        model_type=message.model_type if has("model_type") else None,
        cache_kinds=tuple(message.cache_kinds),
        stateful=message.stateful,
        version=message.version if has("version") else None,
        max_message_bytes=message.max_message_bytes if has("max_message_bytes") else None,
        codecs=tuple(message.codecs),
        extra=dict(message.extra),
    )


def encode_health_question(padding: bytes) -> bytes:
    """The bytes that ask whether calls are taken, and for the padding to come back."""
    return pb.HealthCheckRequest(padding=padding).SerializeToString()


def decode_health_question(data: bytes) -> bytes:
    """The padding that is to come back.

    Raises:
        InvalidRequestError: There is too much of it, or the bytes are malformed.
    """
    padding = parse(pb.HealthCheckRequest, data).padding if data else b""
    if len(padding) > MAX_PADDING_BYTES:
        raise InvalidRequestError(f"a health check with {len(padding)} bytes of padding: at most {MAX_PADDING_BYTES}")
    return padding


def encode_health(serving: bool, padding: bytes = b"") -> bytes:
    """The bytes that say whether calls are taken."""
    return pb.HealthCheckResponse(serving=serving, padding=padding).SerializeToString()


def decode_health(data: bytes) -> bool:
    """Whether calls are taken."""
    return parse(pb.HealthCheckResponse, data).serving


def decode_health_padding(data: bytes) -> bytes:
    """The padding that came back."""
    return parse(pb.HealthCheckResponse, data).padding


def encode_error(error: CommError) -> pb.Error:
    """An error as it travels inside a session."""
    code, kind = error.code.value[0], type(error).__name__
    retry_after_s = error.retry_after_s if isinstance(error, ResourceExhaustedError) else None
    request_id = error.request_id or ""
    return pb.Error(code=code, kind=kind, message=str(error), request_id=request_id, retry_after_s=retry_after_s)


def decode_error(message: pb.Error) -> CommError:
    """The exception an error of a session stands for."""
    code = _STATUS.get(message.code, grpc.StatusCode.UNKNOWN)
    error = error_class(code, message.kind)(message.message, request_id=message.request_id or None)
    if isinstance(error, ResourceExhaustedError):
        error.retry_after_s = told_wait_s(message.retry_after_s)
    return error


def told_wait_s(seconds: float) -> float | None:
    """What a server said about when to ask again, as a time that can be waited, at most a day; None if it is none."""
    return min(seconds, _LONGEST_WAIT_S) if math.isfinite(seconds) and seconds > 0 else None
