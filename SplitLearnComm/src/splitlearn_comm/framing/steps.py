"""Messages of a session, as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import CommError, InvalidRequestError
from splitlearn_comm.framing.assembly import with_tensor
from splitlearn_comm.framing.fields import CODEC, attention_mask_of, encode_optional, parse, position_ids_of
from splitlearn_comm.framing.service import decode_error, encode_error
from splitlearn_comm.messages import Action, Crop, Forward, Reorder, StartRecording
from splitlearn_comm.session import Advance, Effect, Mark, Permute, Trim

_DONE = pb.Done()
_FORWARD_TENSOR = (pb.SessionRequest.FORWARD_FIELD_NUMBER, pb.Forward.TENSOR_FIELD_NUMBER)
_RESPONSE_TENSOR = (pb.SessionResponse.TENSOR_FIELD_NUMBER,)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one message of a session."""

    step_id: int
    """The step it answers; after an open, the last step done."""
    position: int
    """Tokens in the cache after it."""
    tensor: torch.Tensor | None = None
    """[B, T, H] after a forward."""
    max_message_bytes: int | None = None
    """The server's limit, after an open."""
    error: CommError | None = None
    """Why it was refused."""


def encode_open(session_id: str, position: int, expected_fingerprint: str | None, resume: bool) -> bytes:
    """The message that opens a session, or takes it up again on a new stream."""
    action = pb.Open(expected_fingerprint=expected_fingerprint or "", resume=resume)
    return pb.SessionRequest(session_id=session_id, position=position, open=action).SerializeToString()


def encode_close() -> bytes:
    """The message that ends a session."""
    return pb.SessionRequest(close=pb.Close()).SerializeToString()


def encode_step(step_id: int, position: int, action: Action) -> bytes:
    """The message of a step. Raises `InvalidRequestError` for a tensor that cannot be sent."""
    match action:
        case Forward(hidden, attention_mask, position_ids):
            fields = pb.SessionRequest(step_id=step_id, position=position).SerializeToString()
            return with_tensor(fields, _FORWARD_TENSOR, hidden, _beside(attention_mask, position_ids))
        case Reorder(indices):
            request = pb.SessionRequest(step_id=step_id, position=position, reorder=pb.Reorder(indices=indices))
        case Crop(num_tokens):
            request = pb.SessionRequest(step_id=step_id, position=position, crop=pb.Crop(num_tokens=num_tokens))
        case StartRecording():
            request = pb.SessionRequest(step_id=step_id, position=position, start_recording=pb.StartRecording())
        case _:
            assert_never(action)
    return request.SerializeToString()


def parse_request(data: bytes) -> pb.SessionRequest:
    """The request in the bytes. Raises `InvalidRequestError` if there is none, or it asks for nothing."""
    request = parse(pb.SessionRequest, data)
    if request.WhichOneof("action") is None:
        raise InvalidRequestError("a session message without an action: expected open, forward, reorder, crop ...")
    return request


def effect_of(request: pb.SessionRequest) -> Effect:
    """What a step does to position and batch, read off its message without decoding a tensor."""
    match request.WhichOneof("action"):
        case "forward":
            shape = request.forward.tensor.shape
            return Advance(shape[0], shape[1]) if len(shape) > 1 else Advance(0, 0)
        case "reorder":
            return Permute(tuple(request.reorder.indices))
        case "crop":
            return Trim(request.crop.num_tokens)
        case _:
            return Mark()


def action_of(request: pb.SessionRequest) -> Action:
    """The action of a step. Raises `InvalidRequestError` if a tensor in it is malformed."""
    match request.WhichOneof("action"):
        case "forward":
            forward = request.forward
            return Forward(CODEC.decode(forward.tensor), attention_mask_of(forward), position_ids_of(forward))
        case "reorder":
            return Reorder(tuple(request.reorder.indices))
        case "crop":
            return Crop(request.crop.num_tokens)
        case _:
            return StartRecording()


def encode_opened(step_id: int, position: int, max_message_bytes: int) -> bytes:
    """The answer to an open."""
    opened = pb.Opened(max_message_bytes=max_message_bytes)
    return pb.SessionResponse(step_id=step_id, position=position, opened=opened).SerializeToString()


def encode_done(step_id: int, position: int, tensor: torch.Tensor | None = None) -> bytes:
    """The answer to a step: with the tensor of a forward, without one for the others."""
    if tensor is None:
        return pb.SessionResponse(step_id=step_id, position=position, done=_DONE).SerializeToString()
    fields = pb.SessionResponse(step_id=step_id, position=position).SerializeToString()
    return with_tensor(fields, _RESPONSE_TENSOR, tensor)


def encode_refusal(step_id: int, position: int, error: CommError) -> bytes:
    """The answer to a step that was refused or failed."""
    return pb.SessionResponse(step_id=step_id, position=position, error=encode_error(error)).SerializeToString()


def decode_answer(data: bytes) -> Answer:
    """The answer in the bytes. Raises `InvalidRequestError` if they are malformed."""
    response = parse(pb.SessionResponse, data)
    step_id, position = response.step_id, response.position
    match response.WhichOneof("result"):
        case "tensor":
            return Answer(step_id, position, CODEC.decode(response.tensor))
        case "opened":
            return Answer(step_id, position, max_message_bytes=response.opened.max_message_bytes or None)
        case "error":
            return Answer(step_id, position, error=decode_error(response.error))
        case _:
            return Answer(step_id, position)


def _beside(attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None) -> bytes:
    """What a forward carries besides its hidden states, serialised."""
    if attention_mask is None and position_ids is None:
        return b""
    message = pb.Forward(attention_mask=encode_optional(attention_mask), position_ids=encode_optional(position_ids))
    return message.SerializeToString()
