"""Bytes put together and taken apart by hand are what protobuf makes and reads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm import InvalidRequestError
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import Payload, codec_named, codec_names, cut_out, decode_payload, from_bytes, to_bytes
from splitlearn_comm.codec.elements import memory_of

FIELDS = pb.TensorData


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(codec_names()), st.lists(st.integers(0, 70), max_size=3))
def test_the_bytes_are_the_message(name: str, shape: list[int]) -> None:
    codec = codec_named(name)
    tensor = torch.ones(shape)
    data = to_bytes(codec.pack(tensor))
    assert pb.TensorData.FromString(data) == codec.encode(tensor)
    assert from_bytes(data) == Payload.of(codec.encode(tensor)) == from_bytes(codec.encode(tensor).SerializeToString())
    assert torch.equal(decode_payload(from_bytes(data)), codec.decode(codec.encode(tensor)))


def test_a_raw_message_is_what_it_was_before_there_were_codecs() -> None:
    message = codec_named("raw").encode(torch.tensor([1.0, 2.0]))
    assert message.SerializeToString() == bytes.fromhex("0a08 0000803f 00000040 120102 1802")


def test_the_data_that_came_are_a_view() -> None:
    buffer = bytearray(to_bytes(codec_named("raw").pack(torch.ones(1000))))
    payload = from_bytes(memoryview(buffer))
    buffer[-4:] = bytes(4)
    assert decode_payload(payload)[-1] == 0


def test_data_in_front_in_the_middle_and_twice() -> None:
    data, rest = pb.TensorData(data=b"abcd"), pb.TensorData(shape=[1], dtype=pb.DTYPE_FLOAT32)
    other = pb.TensorData(data=b"efgh")
    parts = [part.SerializeToString() for part in (data, rest, other)]
    unknown = bytes.fromhex("f83f 01" + "fd3f 01020304" + "f93f 0102030405060708" + "fa3f 02 6162")
    whole = unknown.join(parts) + unknown
    assert from_bytes(whole) == Payload.of(pb.TensorData.FromString(whole))
    assert bytes(from_bytes(whole).data) == b"efgh"


def test_a_message_inside_can_be_cut_out() -> None:
    request = pb.SessionRequest(step_id=7, position=3)
    request.forward.tensor.CopyFrom(codec_named("raw").encode(torch.ones(3)))
    rest, forward = cut_out(memoryview(request.SerializeToString()), pb.SessionRequest.FORWARD_FIELD_NUMBER)
    assert pb.SessionRequest.FromString(rest) == pb.SessionRequest(step_id=7, position=3)
    assert pb.Forward.FromString(bytes(forward)) == request.forward


@pytest.mark.parametrize("data", ["0a05 01", "0a", "0a ffffffffffffffffffff01", "0b", "0d 01", "09 01", "08"])
def test_bytes_that_are_no_message_are_refused(data: str) -> None:
    with pytest.raises(InvalidRequestError, match="are no TensorData"):
        from_bytes(bytes.fromhex(data))


def test_a_view_keeps_its_tensor_alive() -> None:
    views = [memory_of(torch.full((1000,), float(number))) for number in range(50)]
    for number, view in enumerate(views):
        assert torch.frombuffer(bytearray(view), dtype=torch.float32).eq(number).all()
