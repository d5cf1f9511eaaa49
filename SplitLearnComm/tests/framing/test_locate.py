"""What is found in a buffer is what protobuf finds there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.framing.locate import MAX_FIELDS, locate, only_field

PATH = (
    pb.SessionRequest.FORWARD_FIELD_NUMBER,
    pb.Forward.TENSOR_FIELD_NUMBER,
    pb.TensorData.DATA_FIELD_NUMBER,
)


@st.composite
def requests(draw: st.DrawFn) -> pb.SessionRequest:
    request = pb.SessionRequest(
        session_id=draw(st.text(max_size=5)),
        step_id=draw(st.integers(0, 2**64 - 1)),
        position=draw(st.integers(0, 300)),
    )
    tensor = request.forward.tensor
    tensor.data = draw(st.binary(max_size=300))
    tensor.shape.extend(draw(st.lists(st.integers(0, 2**40), max_size=4)))
    tensor.dtype = draw(st.integers(0, 20))  # type: ignore[assignment]
    if draw(st.booleans()):
        request.forward.attention_mask.data = draw(st.binary(max_size=200))
    return request


@settings(deadline=None, max_examples=300)
@given(requests())
def test_a_message_is_taken_apart_as_protobuf_would(request: pb.SessionRequest) -> None:
    buffer = request.SerializeToString()
    found = locate(buffer, PATH)
    if not request.forward.tensor.data:
        assert found is None
        return
    assert found is not None
    assert buffer[found.begin : found.end] == request.forward.tensor.data
    outer, forward, tensor = found.around
    assert pb.SessionRequest.FromString(outer).step_id == request.step_id
    assert pb.Forward.FromString(forward).attention_mask == request.forward.attention_mask
    without_data = pb.TensorData()
    without_data.CopyFrom(request.forward.tensor)
    without_data.ClearField("data")
    assert pb.TensorData.FromString(tensor) == without_data


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=80))
def test_random_bytes_are_no_message_or_the_same_one(buffer: bytes) -> None:
    found = locate(buffer, (5, 1, 1))
    if found is None:
        return
    try:
        request = pb.SessionRequest.FromString(buffer)
    except Exception:
        # Protobuf looks into fields that nobody asked for here; what is around is parsed by it afterwards.
        return
    assert request.forward.tensor.data == buffer[found.begin : found.end]


@settings(deadline=None, max_examples=300)
@given(requests(), st.data())
def test_a_message_cut_short_is_not_taken_for_a_whole_one(request: pb.SessionRequest, data: st.DataObject) -> None:
    request.forward.tensor.data = b"x" * 40
    buffer = request.SerializeToString()
    cut = buffer[: data.draw(st.integers(0, len(buffer) - 1))]
    found = locate(cut, PATH)
    if found is not None:
        assert pb.SessionRequest.FromString(cut).forward.tensor.data == cut[found.begin : found.end]


@pytest.mark.parametrize("repeats", [2, 3])
def test_a_field_that_comes_twice_is_left_to_protobuf(repeats: int) -> None:
    buffer = pb.TensorData(data=b"abc").SerializeToString() * repeats
    assert locate(buffer, (1,)) is None
    assert locate(pb.TensorData(data=b"abc").SerializeToString(), (1,)) is not None


def test_a_message_of_very_many_fields_is_left_to_protobuf() -> None:
    few, many = b"\x78\x00" * (MAX_FIELDS - 1), b"\x78\x00" * MAX_FIELDS
    assert only_field(few + b"\x0a\x01x", 1, 0, len(few) + 3) is not None
    assert only_field(many + b"\x0a\x01x", 1, 0, len(many) + 3) is None
    assert only_field(b"\x0a\x01x" + many, 1, 0, len(many) + 3) is None
