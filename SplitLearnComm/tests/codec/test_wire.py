"""What is put in front of the data by hand is what protobuf writes; and the messages of codecs are plain protobuf."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import Payload, codec_named, codec_names, decode_payload, encode_payload, field_header
from splitlearn_comm.codec.elements import memory_of


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(codec_names()), st.lists(st.integers(0, 70), max_size=3))
def test_fields_and_data_put_together_are_the_message(name: str, shape: list[int]) -> None:
    tensor = torch.ones(shape)
    payload = encode_payload(tensor, name)
    fields, data = payload.fields().SerializeToString(), payload.data
    whole = pb.TensorData.FromString(fields + field_header(pb.TensorData.DATA_FIELD_NUMBER, len(data)) + bytes(data))
    assert whole == codec_named(name).encode(tensor)
    cut_out = Payload.of(pb.TensorData.FromString(fields), memoryview(whole.data))
    assert cut_out == Payload.of(whole)
    assert torch.equal(decode_payload(cut_out), codec_named(name).decode(whole))


@pytest.mark.parametrize("num_bytes", [1, 127, 128, 16383, 16384, 2**21])
def test_a_field_header_is_protobufs_own(num_bytes: int) -> None:
    theirs = pb.TensorData(side=bytes(num_bytes)).SerializeToString()
    assert field_header(pb.TensorData.SIDE_FIELD_NUMBER, num_bytes) == theirs[:-num_bytes]


def test_a_raw_message_is_what_it_was_before_there_were_codecs() -> None:
    message = codec_named("raw").encode(torch.tensor([1.0, 2.0]))
    assert message.SerializeToString() == bytes.fromhex("0a08 0000803f 00000040 120102 1802")


def test_a_view_keeps_its_tensor_alive() -> None:
    views = [memory_of(torch.full((1000,), float(number))) for number in range(50)]
    for number, view in enumerate(views):
        assert torch.frombuffer(bytearray(view), dtype=torch.float32).eq(number).all()
