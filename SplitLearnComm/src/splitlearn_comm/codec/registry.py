"""Which codecs there are, by the names that travel; a codec that is not in here cannot be used."""

from __future__ import annotations

from collections.abc import Collection

import torch

from splitlearn_comm.checks import check_kind
from splitlearn_comm.codec.casts import CastCodec
from splitlearn_comm.codec.compressed import CompressedTensorCodec
from splitlearn_comm.codec.int4 import Int4Codec
from splitlearn_comm.codec.int8 import Int8Codec
from splitlearn_comm.codec.payload import Payload
from splitlearn_comm.codec.raw import ROLES, TensorCodec
from splitlearn_comm.codec.zstd import ZstdCodec
from splitlearn_comm.errors import UnsupportedOperationError
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES

RAW = TensorCodec()
_MAX_NAME_CHARACTERS = 32
# The choice "auto" is made before there is a codec, so none may be called that.
_RESERVED = ("", "auto")

_codecs: dict[str, TensorCodec] = {RAW.name: RAW}


def register_codec(codec: CompressedTensorCodec) -> None:
    """Make a codec known under its name in this process; the peer has to do the same.

    Raises:
        TypeError: It is no codec.
        ValueError: The name is taken, or is none; or it has a role that there is not.
    """
    check_kind(codec, (CompressedTensorCodec,), "one derived from CompressedTensorCodec, made", "codec")
    name = codec.name
    if name in _RESERVED or len(name) > _MAX_NAME_CHARACTERS or not name.isascii() or not name.isprintable():
        raise ValueError(f"a codec's name has 1 to {_MAX_NAME_CHARACTERS} ASCII characters, came {name[:64]!r}")
    if name in _codecs:
        raise ValueError(f"there is a codec {name!r} already, of {_known()}; choose another name")
    if not set(codec.roles) <= set(ROLES):
        raise ValueError(f"a codec's roles are of {', '.join(ROLES)}; came {codec.roles}")
    _codecs[name] = codec


def codec_names() -> tuple[str, ...]:
    """The names of all codecs, in the order they were registered; raw is the first."""
    return tuple(_codecs)


def usable_names(role: str | None = None) -> tuple[str, ...]:
    """The names of the codecs that lack nothing and, if one is given, may be used in a role; raw is the first."""
    usable = ((name, codec) for name, codec in _codecs.items() if not codec.missing_extra)
    return tuple(name for name, codec in usable if role is None or role in codec.roles)


def codec_named(name: str) -> TensorCodec:
    """The codec of a name.

    Raises:
        ValueError: There is none.
        ImportError: It needs an extra that is not installed.
    """
    codec = _codecs.get(name)
    if codec is None:
        raise ValueError(f"no codec {name[:64]!r}: expected one of {_known()}; add your own with register_codec")
    if codec.missing_extra:
        raise ImportError(f"the codec {name!r} needs: pip install 'splitlearn-comm[{codec.missing_extra}]'")
    return codec


def codec_for(role: str, name: str) -> TensorCodec:
    """The codec of a name, if it may be used in a role.

    Raises:
        ValueError: There is none, or it is not for that.
        ImportError: It needs an extra that is not installed.
    """
    codec = codec_named(name)
    if role not in codec.roles:
        raise ValueError(f"the codec {name!r} is not for {role}: expected one of {', '.join(usable_names(role))}")
    return codec


def encode_payload(tensor: torch.Tensor, codec: str = "raw") -> Payload:
    """What is to be sent for a tensor through the codec of that name; raw where the codec does not take the tensor.

    Raises:
        InvalidRequestError: For a complex, quantised, sparse or meta tensor.
        ValueError: There is no such codec.
        ImportError: It needs an extra that is not installed.
    """
    return codec_named(codec).pack(tensor)


def decode_payload(
    payload: Payload, allowed: Collection[str] | None = None, *, max_tensor_bytes: int = MAX_MESSAGE_BYTES
) -> torch.Tensor:
    """The tensor of what was sent: on the CPU, writable, sharing memory with nothing.

    Args:
        payload: What came, raw or through a codec.
        allowed: Names of the codecs that were agreed on; None for all there are. Raw always is.
        max_tensor_bytes: Largest tensor to make out of fewer bytes.

    Raises:
        InvalidRequestError: The data do not agree with shape and dtype.
        UnsupportedOperationError: The codec is unknown here or was not agreed on.
        MessageTooLargeError: The tensor would be larger than this side takes.
    """
    if not payload.codec:
        return RAW.unpack(payload)
    codec = _codecs.get(payload.codec)
    if codec is None or codec is RAW or codec.missing_extra or (allowed is not None and codec.name not in allowed):
        expected = _usable(allowed)
        raise UnsupportedOperationError(
            f"a tensor came through the codec {payload.codec[:64]!r}: expected one of {expected}; agree on it first"
        )
    return codec.unpack(payload, max_tensor_bytes=max_tensor_bytes)


def _usable(allowed: Collection[str] | None) -> str:
    return ", ".join(name for name in usable_names() if allowed is None or name in allowed or name == RAW.name)


def _known() -> str:
    return ", ".join(_codecs)


for _builtin in (
    CastCodec("bf16", torch.bfloat16),
    CastCodec("fp16", torch.float16),
    Int8Codec(),
    Int4Codec(),
    ZstdCodec(),
):
    register_codec(_builtin)
