"""What is said in a session, and its messages as bytes: what a client asks, and what a server answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import CommError
from splitlearn_comm.framing.agreement import encode_codecs
from splitlearn_comm.framing.assembly import PLAIN, Packing, with_tensor
from splitlearn_comm.framing.caches import encode_cache
from splitlearn_comm.framing.chunks import Outgoing
from splitlearn_comm.framing.fields import encode_optional
from splitlearn_comm.framing.service import encode_error, encode_load
from splitlearn_comm.framing.training import (
    encode_training,
    encode_training_state,
)
from splitlearn_comm.messages import (
    RAW_ROLES,
    Action,
    Crop,
    Forward,
    Load,
    Reorder,
    RoleCodecs,
    SessionState,
    StartRecording,
    Timings,
)
from splitlearn_comm.training import Trained, TrainingAction, TrainingState

_DONE = pb.Done()
_MAX_UINT32 = (1 << 32) - 1
FORWARD_TENSOR = (pb.SessionRequest.FORWARD_FIELD_NUMBER, pb.Forward.TENSOR_FIELD_NUMBER)
RESPONSE_TENSOR = (pb.SessionResponse.TENSOR_FIELD_NUMBER,)
REQUEST_CHUNK = pb.SessionRequest.CHUNK_FIELD_NUMBER
RESPONSE_CHUNK = pb.SessionResponse.CHUNK_FIELD_NUMBER
"""Where what is large lies in a message."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open a session on this stream, or take it up again."""

    session_id: str
    expected_fingerprint: str = ""
    """What the server's must be; empty not to compare."""
    resume: bool = False
    """Whether the session exists already."""
    chunk_bytes: int = 0
    """Data of a tensor the client takes in one message; 0: it takes no chunks."""
    codecs: RoleCodecs = RAW_ROLES
    """How tensors of each role are coded."""
    timings: bool = False
    """Whether answers are to say where the time went."""
    can_move: bool = False
    """Whether the client knows another server to go to when this one drains."""
    adapter: str = ""
    """Name of an adapter of the client, with which the session computes; empty for none."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the session."""


@dataclass(frozen=True, slots=True)
class Export:
    """Give out the session's state."""


@dataclass(frozen=True, slots=True)
class Import:
    """Put a state that was given out elsewhere into this new session."""

    state: SessionState


@dataclass(frozen=True, slots=True)
class Request:
    """One message of a session, as the server sees it."""

    step_id: int
    position: int
    """Tokens in the cache before it, as the client counts."""
    action: Action | TrainingAction | Open | Close | Export | Import
    timeout_ms: int = 0
    """How long the client waits for the answer, counted from when it sent it; 0 if it does not say."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one message of a session."""

    step_id: int
    """The step it answers; after an open, the last step done."""
    position: int
    """Tokens in the cache after it."""
    tensor: torch.Tensor | None = None
    """[B, T, H] after a forward."""
    opened: Opened | None = None
    """After an open."""
    state: SessionState | None = None
    """After an export."""
    training_state: TrainingState | None = None
    """After a read of one."""
    gradient_norms: tuple[float, ...] = ()
    """After a backward pass."""
    error: CommError | None = None
    """Why it was refused."""
    draining: bool = False
    """Whether the server asks the client to move."""
    timings: Timings | None = None
    """Where the time went, if that was asked for."""
    num_bytes: int = 0
    """Of all its messages."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a server says when it opens a session."""

    max_message_bytes: int
    """Its limit; 0 if it does not say."""
    chunk_bytes: int
    """Data of a tensor it takes in one message; 0: it takes no chunks."""
    stateful: bool = True
    """Whether the session has state there."""
    fingerprint: str = ""
    """Of what is served; empty if it has none."""
    load: Load | None = None
    """How busy what serves the session is, this session included; None where the server does not say."""


def encode_open(opening: Open, position: int = 0) -> bytes:
    """The message that opens a session, or takes it up again on a new stream."""
    action = pb.Open(
        expected_fingerprint=opening.expected_fingerprint,
        resume=opening.resume,
        chunk_bytes=opening.chunk_bytes,
        timings=opening.timings,
        can_move=opening.can_move,
        adapter=opening.adapter,
        **{role: encode_codecs(codecs) for role, codecs in opening.codecs.by_role()},
    )
    return pb.SessionRequest(session_id=opening.session_id, position=position, open=action).SerializeToString()


def encode_close(step_id: int = 0) -> bytes:
    """The message that ends a session; its answer carries the same number."""
    return pb.SessionRequest(step_id=step_id, close=pb.Close()).SerializeToString()


def encode_export(step_id: int, position: int) -> bytes:
    """The message that asks for a session's state."""
    return pb.SessionRequest(step_id=step_id, position=position, export=pb.Export()).SerializeToString()


def encode_import(step_id: int, state: SessionState, kv_codec: str = "") -> bytes:
    """The message that puts a state into a session that was just opened; `step_id` is the last step done."""
    action = pb.Import(state=_encode_state(state, kv_codec))
    request = pb.SessionRequest(step_id=step_id, position=state.cache.position, import_state=action)
    return request.SerializeToString()


def encode_step(step_id: int, position: int, action: Action | TrainingAction, packing: Packing = PLAIN) -> Outgoing:
    """The message of a step. Raises `InvalidRequestError` for a tensor that cannot be sent."""
    match action:
        case Forward(hidden, attention_mask, position_ids):
            fields = pb.SessionRequest(step_id=step_id, position=position).SerializeToString()
            beside = _beside(attention_mask, position_ids)
            return with_tensor(fields, FORWARD_TENSOR, hidden, beside, packing, REQUEST_CHUNK)
        case Reorder(indices):
            request = pb.SessionRequest(step_id=step_id, position=position, reorder=pb.Reorder(indices=indices))
        case Crop(num_tokens):
            request = pb.SessionRequest(step_id=step_id, position=position, crop=pb.Crop(num_tokens=num_tokens))
        case StartRecording():
            request = pb.SessionRequest(step_id=step_id, position=position, start_recording=pb.StartRecording())
        case _:
            return encode_training(pb.SessionRequest(step_id=step_id, position=position), action, packing)
    return request.SerializeToString()


def with_timeout(step: Outgoing, remaining_s: float) -> Outgoing:
    """A step that says how long its client will wait for the answer: before the other fields, where the tensor's place
    is found as fast as without it."""
    field = pb.SessionRequest(timeout_ms=min(max(1, round(remaining_s * 1000)), _MAX_UINT32)).SerializeToString()
    return field + step if isinstance(step, bytes) else replace(step, last=field + step.last)


def encode_opened(step_id: int, position: int, opened: Opened) -> bytes:
    """The answer to an open."""
    result = pb.Opened(
        max_message_bytes=opened.max_message_bytes,
        chunk_bytes=opened.chunk_bytes,
        stateful=opened.stateful,
        fingerprint=opened.fingerprint,
        load=encode_load(opened.load),
    )
    return pb.SessionResponse(step_id=step_id, position=position, opened=result).SerializeToString()


def encode_done(step_id: int, position: int, tensor: torch.Tensor | None = None, packing: Packing = PLAIN) -> Outgoing:
    """The answer to a step: with the tensor of a forward, without one for the others."""
    if tensor is None:
        return pb.SessionResponse(step_id=step_id, position=position, done=_DONE).SerializeToString()
    fields = pb.SessionResponse(step_id=step_id, position=position).SerializeToString()
    return with_tensor(fields, RESPONSE_TENSOR, tensor, b"", packing, RESPONSE_CHUNK)


def encode_trained(step_id: int, position: int, trained: Trained, packing: Packing = PLAIN) -> Outgoing:
    """The answer to a step that trains and returns more than a tensor."""
    if trained.state is not None:
        state = encode_training_state(trained.state)
        return pb.SessionResponse(step_id=step_id, position=position, training_state=state).SerializeToString()
    answer = encode_done(step_id, position, trained.gradient, packing)
    return _with_field(answer, pb.SessionResponse(gradient_norms=trained.norms))


def encode_state(step_id: int, position: int, state: SessionState, kv_codec: str = "") -> bytes:
    """The answer to an export."""
    fields = _encode_state(state, kv_codec)
    return pb.SessionResponse(step_id=step_id, position=position, state=fields).SerializeToString()


def with_draining(answer: Outgoing) -> Outgoing:
    """An answer that asks the client to move."""
    return _with_field(answer, pb.SessionResponse(draining=True))


def with_timings(answer: Outgoing, timings: Timings) -> Outgoing:
    """An answer that says where the time went."""
    fields = pb.Timings(queue_s=timings.queue_s, compute_s=timings.compute_s, serialise_s=timings.serialise_s)
    return _with_field(answer, pb.SessionResponse(timings=fields))


def _with_field(answer: Outgoing, field: pb.SessionResponse) -> Outgoing:
    # Fields of a message may stand in any order, so one can be added behind.
    added = field.SerializeToString()
    return answer + added if isinstance(answer, bytes) else replace(answer, last=answer.last + added)


def encode_refusal(step_id: int, position: int, error: CommError) -> bytes:
    """The answer to a step that was refused or failed."""
    return pb.SessionResponse(step_id=step_id, position=position, error=encode_error(error)).SerializeToString()


def _encode_state(state: SessionState, kv_codec: str) -> pb.SessionState:
    return pb.SessionState(cache=encode_cache(state.cache, kv_codec), batch=state.batch)


def _beside(attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None) -> bytes:
    """What a forward carries besides its hidden states, serialised."""
    if attention_mask is None and position_ids is None:
        return b""
    message = pb.Forward(attention_mask=encode_optional(attention_mask), position_ids=encode_optional(position_ids))
    return message.SerializeToString()
