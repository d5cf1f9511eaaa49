"""Coded tensors from anyone: refused by name, or read as a tensor of the stated shape; never anything else."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm import InvalidRequestError, MessageTooLargeError, UnsupportedOperationError
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import Payload, codec_named, codec_names, decode_payload

CODED = [name for name in codec_names() if name != "raw"]
HIDDEN = torch.randn(2, 4, 256, generator=torch.Generator().manual_seed(0))
ROWS, WIDTH, KEPT = 8, 256, 2


def decoded(message: pb.TensorData) -> torch.Tensor:
    return decode_payload(Payload.of(message))


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([*CODED, "raw", "", "nonsense"]),
    st.integers(0, 16),
    st.lists(st.integers(-2, 40) | st.sampled_from([2**31, 2**62]), max_size=4),
    st.binary(max_size=400),
    st.binary(max_size=80),
)
def test_random_fields(codec: str, dtype: int, shape: list[int], data: bytes, side: bytes) -> None:
    message = pb.TensorData(data=data, shape=shape, dtype=dtype, codec=codec, side=side)  # type: ignore[arg-type]
    try:
        tensor = decoded(message)
    except (InvalidRequestError, MessageTooLargeError, UnsupportedOperationError):
        return
    assert list(tensor.shape) == shape


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["bf16", "fp16", "int8", "int4"]), st.data())
def test_flipped_bytes_give_a_tensor_or_a_refusal(codec: str, data: st.DataObject) -> None:
    message = codec_named(codec).encode(HIDDEN)
    for field in ("data", "side"):
        content = bytearray(getattr(message, field))
        for _ in range(data.draw(st.integers(0, 3)) if content else 0):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        setattr(message, field, bytes(content))
    try:
        tensor = decoded(message)
    except InvalidRequestError:
        return
    assert tensor.shape == HIDDEN.shape
    if codec.startswith("int"):
        assert bool(tensor.isfinite().all())


@pytest.mark.parametrize("codec", CODED)
@pytest.mark.parametrize("change", [{"data": b""}, {"data": b"1234567"}, {"side": b"123"}, {"shape": [2, 4, 200]}])
def test_what_does_not_agree_with_the_shape_is_refused(codec: str, change: dict[str, object]) -> None:
    good = codec_named(codec).encode(HIDDEN)
    assert good.codec == codec
    message = pb.TensorData(
        data=change.get("data", good.data),  # type: ignore[arg-type]
        side=change.get("side", good.side),  # type: ignore[arg-type]
        shape=change.get("shape", good.shape),  # type: ignore[arg-type]
        dtype=good.dtype,
        codec=codec,
    )
    with pytest.raises(InvalidRequestError, match=f"coded as '{codec}'"):
        decoded(message)


@pytest.mark.parametrize("codec", ["bf16", "fp16", "int8", "int4"])
def test_a_lossy_codec_makes_no_integers(codec: str) -> None:
    message = codec_named(codec).encode(HIDDEN)
    message.dtype = pb.DTYPE_INT32
    with pytest.raises(InvalidRequestError, match="floating dtype"):
        decoded(message)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 3e38])
@pytest.mark.parametrize(("codec", "position"), [("int8", 0), ("int8", ROWS), ("int4", 0)])
def test_a_scale_that_cannot_be_is_refused(codec: str, position: int, scale: float) -> None:
    message = codec_named(codec).encode(HIDDEN)
    word = struct.pack("<f", scale)
    side, size = bytearray(message.side), 4 if codec == "int8" else 2
    side[position * size : (position + 1) * size] = word if codec == "int8" else word[2:]
    message.side = bytes(side)
    with pytest.raises(InvalidRequestError, match="a scale is negative"):
        decoded(message)


def test_a_kept_column_outside_is_refused() -> None:
    message = codec_named("int8").encode(HIDDEN)
    side, start = bytearray(message.side), 4 * (ROWS + KEPT)
    for number, is_inside in ((WIDTH - 1, True), (WIDTH, False), (2**16 - 1, False)):
        side[start : start + 2] = struct.pack("<H", number)
        message.side = bytes(side)
        if is_inside:
            assert decoded(message).shape == HIDDEN.shape
        else:
            with pytest.raises(InvalidRequestError, match="outside the 256"):
                decoded(message)


def test_a_scale_too_large_for_fp16_is_refused() -> None:
    message = codec_named("int8").encode(HIDDEN.half())
    message.side = struct.pack("<f", 65521 / 127) + message.side[4:]
    with pytest.raises(InvalidRequestError, match="beyond the dtype"):
        decoded(message)


@pytest.mark.parametrize("shape", [[], [0], [3, 0]])
def test_numbers_and_empty_tensors_travel_raw_only(shape: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match="travel raw"):
        decoded(pb.TensorData(shape=shape, dtype=pb.DTYPE_FLOAT32, codec="int8"))


@pytest.mark.parametrize("codec", CODED)
def test_more_than_this_side_takes_is_refused(codec: str) -> None:
    payload = Payload.of(codec_named(codec).encode(HIDDEN))
    assert decode_payload(payload, max_tensor_bytes=HIDDEN.nbytes).shape == HIDDEN.shape
    with pytest.raises(MessageTooLargeError, match=f"{HIDDEN.nbytes} bytes, at most {HIDDEN.nbytes - 1}"):
        decode_payload(payload, max_tensor_bytes=HIDDEN.nbytes - 1)


def test_a_codec_that_was_not_agreed_on_is_refused() -> None:
    payload = Payload.of(codec_named("int8").encode(HIDDEN))
    assert decode_payload(payload, allowed=["int8"]).shape == HIDDEN.shape
    with pytest.raises(UnsupportedOperationError, match="codec 'int8': expected one of raw, bf16;"):
        decode_payload(payload, allowed=["bf16"])
    with pytest.raises(UnsupportedOperationError, match="codec 'nonsense': expected one of raw, bf16, fp16"):
        decoded(pb.TensorData(shape=[1], dtype=pb.DTYPE_FLOAT32, codec="nonsense"))
    with pytest.raises(UnsupportedOperationError, match="codec 'raw'"):
        decoded(pb.TensorData(data=b"1234", shape=[1], dtype=pb.DTYPE_FLOAT32, codec="raw"))
    with pytest.raises(InvalidRequestError, match="codec 'int8': expected 'bf16' or none"):
        codec_named("bf16").unpack(payload)
