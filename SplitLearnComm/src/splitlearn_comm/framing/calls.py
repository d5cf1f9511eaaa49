"""Stateless calls and their results, as bytes."""

from __future__ import annotations

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import UnsupportedOperationError
from splitlearn_comm.framing.agreement import check_codecs, codecs_of, encode_codecs
from splitlearn_comm.framing.assembly import with_tensor
from splitlearn_comm.framing.caches import cache_of, encode_cache
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.fields import attention_mask_of, encode_optional, parse, position_ids_of
from splitlearn_comm.framing.tensors import TensorTaker, tensor_of
from splitlearn_comm.messages import RAW_CODECS, Codecs, ComputeCall, ComputeResult, KVEntries
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES

_REQUEST_TENSOR = (pb.ComputeRequest.TENSOR_FIELD_NUMBER,)
_RESPONSE_TENSOR = (pb.ComputeResponse.TENSOR_FIELD_NUMBER,)


def encode_call(call: ComputeCall, expected_fingerprint: str | None = None, kv: Codecs = RAW_CODECS) -> bytes:
    """The bytes of a call.

    Args:
        call: What is asked.
        expected_fingerprint: What the server's must be; None not to compare.
        kv: How the cache in it is coded, and the one in the result is to be.

    Raises:
        InvalidRequestError: A tensor cannot be sent.
    """
    fields = pb.ComputeRequest(
        attention_mask=encode_optional(call.attention_mask),
        position_ids=encode_optional(call.position_ids),
        past_key_values=encode_cache(call.past_key_values, kv.to_server),
        use_cache=call.use_cache,
        expected_fingerprint=expected_fingerprint or "",
        kv=encode_codecs(kv),
        adapter=call.adapter,
    ).SerializeToString()
    return whole(with_tensor(fields, _REQUEST_TENSOR, call.tensor))


def decode_call(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> tuple[ComputeCall, str, Codecs]:
    """The call in the bytes, the fingerprint it expects (empty: none), and how caches are coded.

    Args:
        data: What came.
        max_bytes: Of the cache in it, uncoded.

    Raises:
        InvalidRequestError: The bytes or a tensor in them are malformed.
        UnsupportedOperationError: The cache is coded otherwise than the call says, or than is possible here.
        MessageTooLargeError: The cache would be larger than is taken.
    """
    taken = TensorTaker(_REQUEST_TENSOR).take(data)
    message = parse(pb.ComputeRequest, data if taken is None else taken.outer)
    kv = codecs_of(message.kv)
    check_codecs("kv", kv)
    call = ComputeCall(
        tensor=tensor_of(message.tensor) if taken is None else taken.tensor,
        attention_mask=attention_mask_of(message),
        position_ids=position_ids_of(message),
        past_key_values=cache_of(message, kv.names(), max_bytes),
        use_cache=message.use_cache,
        adapter=message.adapter,
    )
    return call, message.expected_fingerprint, kv


def encode_result(result: ComputeResult, kv_codec: str = "") -> bytes:
    """The bytes of a result, its cache through that codec. Raises `InvalidRequestError` for what cannot be sent."""
    fields = pb.ComputeResponse(past_key_values=encode_cache(result.past_key_values, kv_codec)).SerializeToString()
    return whole(with_tensor(fields, _RESPONSE_TENSOR, result.tensor))


def decode_result(data: bytes, kv_codec: str = "", max_bytes: int = MAX_MESSAGE_BYTES) -> ComputeResult:
    """The result in the bytes, its cache through that codec or raw.

    Args:
        data: What came.
        kv_codec: Name of the codec that was asked for; empty: raw.
        max_bytes: Of the cache in it, uncoded.

    Raises:
        InvalidRequestError: They are malformed.
        UnsupportedOperationError: The cache came through another codec.
        MessageTooLargeError: The cache would be larger than is taken.
    """
    taken = TensorTaker(_RESPONSE_TENSOR).take(data)
    message = parse(pb.ComputeResponse, data if taken is None else taken.outer)
    cache = cache_of(message, (kv_codec,), max_bytes)
    return ComputeResult(tensor_of(message.tensor) if taken is None else taken.tensor, cache)


def unpacked(result: ComputeResult, use_cache: bool) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
    """What `compute` of a client returns for a result."""
    if not use_cache:
        return result.tensor
    if result.past_key_values is None:
        raise UnsupportedOperationError("the server sent no cache although use_cache was asked for")
    return result.tensor, result.past_key_values
