"""Stateless calls and their results, as bytes."""

from __future__ import annotations

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import UnsupportedOperationError
from splitlearn_comm.framing.assembly import with_tensor
from splitlearn_comm.framing.caches import cache_of, encode_cache
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.fields import attention_mask_of, encode_optional, parse, position_ids_of
from splitlearn_comm.framing.tensors import TensorTaker, tensor_of
from splitlearn_comm.messages import ComputeCall, ComputeResult, KVEntries

_REQUEST_TENSOR = (pb.ComputeRequest.TENSOR_FIELD_NUMBER,)
_RESPONSE_TENSOR = (pb.ComputeResponse.TENSOR_FIELD_NUMBER,)


def encode_call(call: ComputeCall, expected_fingerprint: str | None = None) -> bytes:
    """The bytes of a call. Raises `InvalidRequestError` for a tensor that cannot be sent."""
    fields = pb.ComputeRequest(
        attention_mask=encode_optional(call.attention_mask),
        position_ids=encode_optional(call.position_ids),
        past_key_values=encode_cache(call.past_key_values),
        use_cache=call.use_cache,
        expected_fingerprint=expected_fingerprint or "",
    ).SerializeToString()
    return whole(with_tensor(fields, _REQUEST_TENSOR, call.tensor))


def decode_call(data: bytes) -> tuple[ComputeCall, str]:
    """The call in the bytes, and the fingerprint it expects (empty: none).

    Raises:
        InvalidRequestError: The bytes or a tensor in them are malformed.
    """
    taken = TensorTaker(_REQUEST_TENSOR).take(data)
    message = parse(pb.ComputeRequest, data if taken is None else taken.outer)
    call = ComputeCall(
        tensor=tensor_of(message.tensor) if taken is None else taken.tensor,
        attention_mask=attention_mask_of(message),
        position_ids=position_ids_of(message),
        past_key_values=cache_of(message),
        use_cache=message.use_cache,
    )
    return call, message.expected_fingerprint


def encode_result(result: ComputeResult) -> bytes:
    """The bytes of a result. Raises `InvalidRequestError` for a tensor that cannot be sent."""
    fields = pb.ComputeResponse(past_key_values=encode_cache(result.past_key_values)).SerializeToString()
    return whole(with_tensor(fields, _RESPONSE_TENSOR, result.tensor))


def decode_result(data: bytes) -> ComputeResult:
    """The result in the bytes. Raises `InvalidRequestError` if they are malformed."""
    taken = TensorTaker(_RESPONSE_TENSOR).take(data)
    message = parse(pb.ComputeResponse, data if taken is None else taken.outer)
    return ComputeResult(tensor_of(message.tensor) if taken is None else taken.tensor, cache_of(message))


def unpacked(result: ComputeResult, use_cache: bool) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
    """What `compute` of a client returns for a result."""
    if not use_cache:
        return result.tensor
    if result.past_key_values is None:
        raise UnsupportedOperationError("the server sent no cache although use_cache was asked for")
    return result.tensor, result.past_key_values
