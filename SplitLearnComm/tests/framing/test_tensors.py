"""Tensors are taken out of messages as protobuf would read them, also when one message is like the one before."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm import Forward, Reorder, TensorCodec
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import field_header
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.chunks import whole
from splitlearn_comm.framing.inbox import Inbox


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**63), st.integers(0, 2**63), st.sampled_from([1, 1, 1, 2]), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_a_row_of_messages(numbers: list[tuple[int, int, int, bool]]) -> None:
    inbox = Inbox(0)
    for index, (step_id, position, num_tokens, has_mask) in enumerate(numbers):
        tensor = torch.full((1, num_tokens, 3), float(index))
        mask = torch.ones(1, num_tokens, dtype=torch.bool) if has_mask else None
        request = inbox.request(whole(steps.encode_step(step_id, position, Forward(tensor, mask))))
        assert request is not None
        assert isinstance(request.action, Forward)
        assert (request.step_id, request.position) == (step_id, position)
        assert torch.equal(request.action.hidden, tensor)
        assert (request.action.attention_mask is not None) == has_mask
        answer = inbox.answer(whole(steps.encode_done(step_id, position, tensor)))
        assert answer is not None
        assert (answer.step_id, answer.position) == (step_id, position)
        assert answer.tensor is not None
        assert torch.equal(answer.tensor, tensor)


def test_of_two_actions_in_one_message_the_last_counts_as_in_protobuf() -> None:
    forward = whole(steps.encode_step(1, 0, Forward(torch.ones(1, 2, 3))))
    reorder = whole(steps.encode_step(1, 0, Reorder((0,))))
    for buffer in (forward + reorder, reorder + forward):
        inbox = Inbox(0)
        inbox.request(forward)  # the next is like this one, but for what stands before
        request = inbox.request(buffer)
        expected = pb.SessionRequest.FromString(buffer).WhichOneof("action")
        assert request is not None
        assert type(request.action).__name__.lower() == expected


def test_a_message_is_not_taken_for_the_one_before_when_only_its_shape_differs() -> None:
    inbox = Inbox(0)
    for shape in ((1, 2, 6), (1, 3, 4), (2, 2, 3), (12, 1, 1)):
        request = inbox.request(whole(steps.encode_step(1, 0, Forward(torch.ones(shape)))))
        assert request is not None
        assert isinstance(request.action, Forward)
        assert tuple(request.action.hidden.shape) == shape


def test_what_stands_before_the_tensor_is_read_every_time() -> None:
    """Another implementation may put the mask first."""
    forward = pb.Forward(attention_mask=TensorCodec().encode(torch.ones(1, 2, dtype=torch.bool)))
    tensor = pb.Forward(tensor=TensorCodec().encode(torch.ones(1, 2, 3)))
    inside = forward.SerializeToString() + tensor.SerializeToString()
    buffer = field_header(pb.SessionRequest.FORWARD_FIELD_NUMBER, len(inside)) + inside
    inbox = Inbox(0)
    for _ in range(3):
        request = inbox.request(buffer)
        assert request is not None
        assert isinstance(request.action, Forward)
        assert request.action.attention_mask is not None
