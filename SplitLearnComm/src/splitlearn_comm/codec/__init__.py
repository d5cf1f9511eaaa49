"""Tensors to the bytes of `TensorData` and back: raw, or through a codec that makes them fewer.

`TensorCodec` is raw; derive from `CompressedTensorCodec` and `register_codec` it to add one of your own.
"""

from splitlearn_comm.codec.auto import AutoCodec
from splitlearn_comm.codec.choice import CodecChoice, CodecCost, choose_codec, measure_cost
from splitlearn_comm.codec.compressed import Coded, CompressedTensorCodec
from splitlearn_comm.codec.elements import DTYPES, ENUMS, memory_of, sendable
from splitlearn_comm.codec.loss import CodecLoss, kl_nats, measure_loss
from splitlearn_comm.codec.payload import MAX_DIMS, Payload
from splitlearn_comm.codec.plan import CodecPlan
from splitlearn_comm.codec.raw import ROLES, TensorCodec, checked_fields
from splitlearn_comm.codec.registry import (
    codec_for,
    codec_named,
    codec_names,
    decode_payload,
    encode_payload,
    register_codec,
    usable_names,
)
from splitlearn_comm.codec.wire import field_header

__all__ = [
    "DTYPES",
    "ENUMS",
    "MAX_DIMS",
    "ROLES",
    "AutoCodec",
    "CodecChoice",
    "CodecCost",
    "CodecLoss",
    "CodecPlan",
    "Coded",
    "CompressedTensorCodec",
    "Payload",
    "TensorCodec",
    "checked_fields",
    "choose_codec",
    "codec_for",
    "codec_named",
    "codec_names",
    "decode_payload",
    "encode_payload",
    "field_header",
    "kl_nats",
    "measure_cost",
    "measure_loss",
    "memory_of",
    "register_codec",
    "sendable",
    "usable_names",
]
