"""The bytes put together by hand are the messages that protobuf would make."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm import ComputeCall, ComputeResult, Forward, KVEntries, KVEntry, TensorCodec
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.framing import calls, steps
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.inbox import Inbox

CODEC = TensorCodec()
shapes = st.lists(st.integers(0, 40), max_size=3)


@settings(deadline=None, max_examples=100)
@given(shapes, st.sampled_from([torch.float32, torch.bfloat16, torch.bool]), st.booleans(), st.booleans())
def test_a_forward(shape: list[int], dtype: torch.dtype, has_mask: bool, has_positions: bool) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    mask = torch.ones(1, 300, dtype=torch.bool) if has_mask else None
    positions = torch.arange(3).view(1, 3) if has_positions else None
    expected = pb.SessionRequest(step_id=7, position=300)
    expected.forward.tensor.CopyFrom(CODEC.encode(tensor))
    if mask is not None:
        expected.forward.attention_mask.CopyFrom(CODEC.encode(mask))
    if positions is not None:
        expected.forward.position_ids.CopyFrom(CODEC.encode(positions))
    made = steps.encode_step(7, 300, Forward(tensor, mask, positions))
    parsed = pb.SessionRequest.FromString(whole(made))
    parsed.forward.tensor.ClearField("padding")
    assert parsed == expected
    assert len(made) <= expected.ByteSize() + 20


@settings(deadline=None, max_examples=50)
@given(shapes)
def test_the_other_messages_with_tensors(shape: list[int]) -> None:
    tensor = torch.ones(shape)
    data = CODEC.encode(tensor)
    answer = pb.SessionResponse.FromString(whole(steps.encode_done(1, 2, tensor)))
    answer.tensor.ClearField("padding")
    assert answer == pb.SessionResponse(step_id=1, position=2, tensor=data)
    call = pb.ComputeRequest.FromString(calls.encode_call(ComputeCall(tensor, use_cache=True), "f"))
    call.tensor.ClearField("padding")
    assert call == pb.ComputeRequest(tensor=data, use_cache=True, expected_fingerprint="f")
    cache = KVEntries((KVEntry(3, "k", {"keys": tensor}),), 9)
    result = pb.ComputeResponse.FromString(calls.encode_result(ComputeResult(tensor, cache)))
    entry = pb.KVCacheEntry(layer=3, kind="k", tensors=[pb.NamedTensor(name="keys", tensor=data)])
    result.tensor.ClearField("padding")
    assert result == pb.ComputeResponse(tensor=data, past_key_values=pb.KVCache(entries=[entry], position=9))


@pytest.mark.parametrize("num_elements", [31, 32, 127, 128, 4095, 4096, 2**19])
def test_lengths_of_every_number_of_digits(num_elements: int) -> None:
    tensor = torch.arange(num_elements, dtype=torch.float32)
    answer = Inbox(0).answer(whole(steps.encode_done(1, 1, tensor)))
    assert answer is not None
    assert answer.tensor is not None
    assert torch.equal(answer.tensor, tensor)


@settings(deadline=None, max_examples=60)
@given(st.integers(2**14 + 1, 2**15), st.integers(0, 2**40), st.booleans())
def test_the_elements_of_a_large_tensor_are_aligned_and_not_copied(num: int, step_id: int, has_mask: bool) -> None:
    tensor = torch.arange(num, dtype=torch.float32).view(1, 1, num)
    mask = torch.ones(1, 1, dtype=torch.bool) if has_mask else None
    made = whole(steps.encode_step(step_id, 1, Forward(tensor, mask)))
    assert pb.SessionRequest.FromString(made).forward.tensor.data == tensor.numpy().tobytes()
    assert made.index(tensor.numpy().tobytes()) % 16 == 0
    request = Inbox(0).request(made)
    assert request is not None
    assert isinstance(request.action, Forward)
    assert torch.equal(request.action.hidden, tensor)
    # The tensor lies in the message: what is written to the one is seen in the other.
    request.action.hidden.zero_()
    assert tensor.numpy().tobytes() not in made
