"""Tensors in chunks: put together once, in place, within the limit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn_comm import Forward, InvalidRequestError, MessageTooLargeError
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.assembly import Packing
from splitlearn_comm.framing.chunks import ChunkBuffer, ChunkedMessage, messages_of
from splitlearn_comm.framing.inbox import Inbox

LIMIT = 1 << 20


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 60),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    st.integers(1, 300),
    st.sampled_from(["", "bf16"]),
)
def test_a_tensor_arrives_as_it_was_sent(num_tokens: int, dtype: torch.dtype, chunk_bytes: int, codec: str) -> None:
    tensor = (torch.arange(num_tokens * 3).view(1, num_tokens, 3) % 2).to(dtype)
    inbox = Inbox(LIMIT)
    inbox.codecs = ("bf16",)
    mask = torch.ones(1, num_tokens, dtype=torch.bool)
    packing = Packing(codec, chunk_bytes)
    messages = [*messages_of(steps.encode_step(3, 9, Forward(tensor, mask), packing))]
    assert all(len(message) <= chunk_bytes + 64 for message in messages[:-1])
    *before, request = [inbox.request(message) for message in messages]
    assert before == [None] * len(before)
    assert request is not None
    assert isinstance(request.action, Forward)
    assert (request.step_id, request.position) == (3, 9)
    assert torch.equal(request.action.hidden, tensor)
    assert request.action.attention_mask is not None

    answers = [inbox.answer(message) for message in messages_of(steps.encode_done(3, 12, tensor, packing))]
    assert answers[-1] is not None
    assert answers[-1].tensor is not None
    assert torch.equal(answers[-1].tensor, tensor)
    answers[-1].tensor.zero_()  # writable


def test_chunks_are_plain_messages_of_the_protocol() -> None:
    tensor = torch.arange(100, dtype=torch.float32).view(1, 100)
    messages = [*messages_of(steps.encode_step(1, 0, Forward(tensor), Packing(chunk_bytes=128)))]
    parsed = [pb.SessionRequest.FromString(message) for message in messages]
    assert [message.WhichOneof("action") for message in parsed] == ["chunk"] * 4 + ["forward"]
    assert b"".join(message.chunk.data for message in parsed[:-1]) == tensor.numpy().tobytes()
    assert [message.chunk.offset for message in parsed[:-1]] == [0, 128, 256, 384]
    assert parsed[-1].forward.tensor.chunked_bytes == 400


def test_each_chunk_is_made_when_it_is_asked_for() -> None:
    tensor = torch.zeros(1, 64)
    message = steps.encode_step(1, 0, Forward(tensor), Packing(chunk_bytes=64))
    assert isinstance(message, ChunkedMessage)
    pieces = iter(message)
    next(pieces)
    tensor.fill_(1.0)
    assert pb.SessionRequest.FromString(next(pieces)).chunk.data == b"\x00\x00\x80?" * 16


def test_a_repeated_chunk_changes_nothing() -> None:
    tensor = torch.arange(64, dtype=torch.float32).view(1, 64)
    inbox = Inbox(LIMIT)
    for message in [*messages_of(steps.encode_step(1, 0, Forward(tensor), Packing(chunk_bytes=64)))]:
        first = inbox.request(message)
        if first is None:
            inbox.request(message)
    assert first is not None
    assert isinstance(first.action, Forward)
    assert torch.equal(first.action.hidden, tensor)


def test_an_announcement_over_the_limit_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(MessageTooLargeError, match="at most 100 are taken"):
        ChunkBuffer(100).add(0, 2**62, memoryview(b"x"))


@pytest.mark.parametrize(
    ("offset", "total_bytes", "piece"), [(3, 10, b"x"), (2, 10, b"x" * 9), (2, 11, b"x"), (2, 9, b"x"), (11, 10, b"x")]
)
def test_a_chunk_out_of_place_is_refused(offset: int, total_bytes: int, piece: bytes) -> None:
    chunks = ChunkBuffer(LIMIT)
    chunks.add(0, 10, memoryview(b"ab"))
    with pytest.raises(InvalidRequestError, match="out of place"):
        chunks.add(offset, total_bytes, memoryview(piece))


@pytest.mark.parametrize("num_bytes", [10, 3, 2])
def test_a_tensor_that_is_not_whole_is_refused(num_bytes: int) -> None:
    chunks = ChunkBuffer(LIMIT)
    chunks.add(0, 10, memoryview(b"ab"))
    with pytest.raises(InvalidRequestError, match="not whole"):
        chunks.take(num_bytes)


def test_a_message_that_names_chunks_that_never_came_is_refused() -> None:
    *_, last = messages_of(steps.encode_step(1, 0, Forward(torch.zeros(1, 64)), Packing(chunk_bytes=64)))
    with pytest.raises(InvalidRequestError, match="expected 256 bytes, came 0"):
        Inbox(LIMIT).request(last)


def test_a_codec_that_was_not_agreed_on_is_refused() -> None:
    from splitlearn_comm import UnsupportedOperationError

    (message,) = messages_of(steps.encode_step(1, 0, Forward(torch.ones(1, 4, 32)), Packing("int8")))
    with pytest.raises(UnsupportedOperationError, match="agree on it first"):
        Inbox(LIMIT).request(message)
