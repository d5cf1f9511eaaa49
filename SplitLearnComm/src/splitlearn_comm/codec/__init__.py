"""Tensors to the bytes of `TensorData` and back: raw, or through a codec that makes them fewer.

`TensorCodec` is raw; derive from `CompressedTensorCodec` and `register_codec` it to add one of your own.
"""

from splitlearn_comm.codec.choice import CodecChoice, CodecCost, choose_codec, measure_cost
from splitlearn_comm.codec.compressed import Coded, CompressedTensorCodec
from splitlearn_comm.codec.elements import DTYPES, ENUMS, memory_of, sendable
from splitlearn_comm.codec.loss import CodecLoss, measure_loss
from splitlearn_comm.codec.payload import MAX_DIMS, Payload
from splitlearn_comm.codec.raw import TensorCodec, checked_fields
from splitlearn_comm.codec.registry import (
    codec_named,
    codec_names,
    decode_payload,
    encode_payload,
    register_codec,
)
from splitlearn_comm.codec.wire import field_header

__all__ = [
    "DTYPES",
    "ENUMS",
    "MAX_DIMS",
    "CodecChoice",
    "CodecCost",
    "CodecLoss",
    "Coded",
    "CompressedTensorCodec",
    "Payload",
    "TensorCodec",
    "checked_fields",
    "choose_codec",
    "codec_named",
    "codec_names",
    "decode_payload",
    "encode_payload",
    "field_header",
    "measure_cost",
    "measure_loss",
    "memory_of",
    "register_codec",
    "sendable",
]
