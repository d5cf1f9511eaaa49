import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm import ComputeCall, InvalidRequestError, KVEntries, KVEntry
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.framing import calls
from splitlearn_comm.framing.bounds import MAX_ITEMS, check_items
from splitlearn_comm.framing.inbox import Inbox
from tests.support.malformed import varint

MANY = MAX_ITEMS + 1


def inside(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


BOMBS = {
    "cache entries": inside(4, b"\x0a\x00" * MANY),
    "tensors of an entry": inside(4, inside(1, b"\x1a\x00" * MANY)),
    "a shape": inside(1, inside(2, b"\x01" * MANY)),
    "a shape, not packed": inside(1, b"\x10\x01" * MANY),
    "a shape in a cache": inside(4, inside(1, inside(3, inside(2, inside(2, b"\x01" * MANY))))),
    "unknown fields": b"\x78\x00" * MANY,
    "groups": b"\x7b\x7c" * MANY,
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_grow_when_it_is_parsed_is_refused_before(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"more than {MAX_ITEMS} fields and numbers"):
        calls.decode_call(BOMBS[name])


def test_rows_without_number_are_refused() -> None:
    reorder = pb.SessionRequest(step_id=1, reorder=pb.Reorder(indices=[0] * MANY)).SerializeToString()
    with pytest.raises(InvalidRequestError, match="more than"):
        Inbox(1 << 20).request(reorder)


def test_a_tensor_whose_shape_alone_is_a_bomb_is_refused() -> None:
    tensor = inside(1, b"data") + inside(2, b"\x01" * MANY)
    with pytest.raises(InvalidRequestError, match="more than"):
        Inbox(1 << 20).request(inside(5, inside(1, tensor)))


def test_a_large_cache_of_many_layers_is_not() -> None:
    tensors = {"keys": torch.zeros(1, 4, 64, 16), "values": torch.zeros(1, 4, 64, 16)}
    past = KVEntries(tuple(KVEntry(layer, "attention", tensors) for layer in range(200)), 64)
    call, _, _ = calls.decode_call(calls.encode_call(ComputeCall(torch.zeros(1, 1, 4), past_key_values=past)))
    assert call.past_key_values is not None
    assert len(call.past_key_values.entries) == 200


@given(st.binary(min_size=200, max_size=300))
def test_of_any_bytes_protobuf_makes_no_more_than_was_counted(data: bytes) -> None:
    many = data * 400
    try:
        check_items(pb.ComputeRequest.DESCRIPTOR, many)
        message = pb.ComputeRequest.FromString(many)
    except (InvalidRequestError, DecodeError):
        return
    assert len(message.past_key_values.entries) + len(message.tensor.shape) <= MAX_ITEMS
