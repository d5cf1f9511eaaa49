"""What is said about a service and its errors, as bytes."""

from __future__ import annotations

import math
from typing import Final

import grpc

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import DTYPES, ENUMS
from splitlearn_comm.errors import CommError, InvalidRequestError, ResourceExhaustedError, error_class
from splitlearn_comm.framing.fields import parse
from splitlearn_comm.messages import HealthReport, Load, ServiceInfo

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


def encode_health_question(padding: bytes = b"", *, with_load: bool = False) -> bytes:
    """The bytes that ask whether calls are taken, for the padding to come back, and for how busy the server is."""
    return pb.HealthCheckRequest(padding=padding, with_load=with_load).SerializeToString()


def decode_health_question(data: bytes) -> tuple[bytes, bool]:
    """The padding that is to come back, and whether to say how busy the server is.

    Raises:
        InvalidRequestError: There is too much padding, or the bytes are malformed.
    """
    question = parse(pb.HealthCheckRequest, data)
    if len(question.padding) > MAX_PADDING_BYTES:
        raise InvalidRequestError(
            f"a health check with {len(question.padding)} bytes of padding: at most {MAX_PADDING_BYTES}"
        )
    return question.padding, question.with_load


def encode_health(report: HealthReport, padding: bytes = b"") -> bytes:
    """The bytes that say whether calls are taken, and how busy the server is."""
    return pb.HealthCheckResponse(
        serving=report.serving, padding=padding, load=encode_load(report.load), models=report.models
    ).SerializeToString()


def decode_health(data: bytes) -> HealthReport:
    """What a server says of itself. Raises `InvalidRequestError` if the bytes are malformed."""
    message = parse(pb.HealthCheckResponse, data)
    return HealthReport(serving=message.serving, models=tuple(message.models), load=load_of(message))


def encode_load(load: Load | None) -> pb.Load | None:
    """The message of how busy a server is; None where that is not said."""
    if load is None:
        return None
    return pb.Load(steps=load.steps, sessions=load.sessions, kv_bytes=load.kv_bytes, kv_limit_bytes=load.kv_limit_bytes)


def load_of(message: pb.HealthCheckResponse | pb.Opened) -> Load | None:
    """How busy the server is that sent a message; None where it does not say."""
    if not message.HasField("load"):
        return None
    came = message.load
    return Load(steps=came.steps, sessions=came.sessions, kv_bytes=came.kv_bytes, kv_limit_bytes=came.kv_limit_bytes)


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
