"""Parsing of any message, and fields that several messages share."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from google.protobuf.message import DecodeError, Message

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import TensorCodec
from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.framing.bounds import check_items

CODEC = TensorCodec()
M = TypeVar("M", bound=Message)


def parse(message_type: type[M], data: bytes) -> M:
    """The message in the bytes. Raises `InvalidRequestError` if it is none, or one of very many fields."""
    descriptor: Any = message_type.DESCRIPTOR
    check_items(descriptor, data)
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        raise InvalidRequestError(f"{len(data)} bytes came that are no {name}: {error}") from error


def encode_optional(tensor: torch.Tensor | None) -> pb.TensorData | None:
    """The message of a tensor that may be absent."""
    return None if tensor is None else CODEC.encode(tensor)


def attention_mask_of(message: pb.Forward | pb.ForwardPass | pb.ComputeRequest) -> torch.Tensor | None:
    """The attention mask of a message, None where it has none."""
    return CODEC.decode(message.attention_mask) if message.HasField("attention_mask") else None


def position_ids_of(message: pb.Forward | pb.ForwardPass | pb.ComputeRequest) -> torch.Tensor | None:
    """The position ids of a message, None where it has none."""
    return CODEC.decode(message.position_ids) if message.HasField("position_ids") else None
