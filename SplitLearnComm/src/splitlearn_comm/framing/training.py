"""Messages of a training, as bytes and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, assert_never

import torch
from google.protobuf.message import Message

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import Payload, decode_payload, encode_payload
from splitlearn_comm.codec.elements import DTYPES, ENUMS
from splitlearn_comm.errors import InvalidRequestError, MessageTooLargeError
from splitlearn_comm.framing.assembly import PLAIN, Packing, with_tensor
from splitlearn_comm.framing.chunks import Outgoing
from splitlearn_comm.framing.fields import attention_mask_of, encode_optional, position_ids_of
from splitlearn_comm.training import (
    BackwardPass,
    ForwardPass,
    FreeAdapter,
    Options,
    ParameterGroup,
    PublishAdapter,
    ReadTraining,
    StartTraining,
    TrainingAction,
    TrainingState,
    Update,
    WriteTraining,
)

_FORWARD = (pb.SessionRequest.FORWARD_PASS_FIELD_NUMBER, pb.ForwardPass.TENSOR_FIELD_NUMBER)
_BACKWARD = (pb.SessionRequest.BACKWARD_PASS_FIELD_NUMBER, pb.BackwardPass.TENSOR_FIELD_NUMBER)
_CHUNK = pb.SessionRequest.CHUNK_FIELD_NUMBER

TakeTensor = Callable[[pb.TensorData], torch.Tensor]
"""Makes a tensor of a field, its chunks included."""


def encode_training(outer: pb.SessionRequest, action: TrainingAction, packing: Packing = PLAIN) -> Outgoing:
    """The message of a step that trains.

    Args:
        outer: With `step_id` and `position`; is changed.
        action: What it does.
        packing: How its tensor is sent: hidden states or a gradient.

    Raises:
        InvalidRequestError: A tensor that cannot be sent, or an option that JSON has no word for.
    """
    match action:
        case ForwardPass():
            inside: Message = pb.ForwardPass(
                attention_mask=encode_optional(action.attention_mask),
                position_ids=encode_optional(action.position_ids),
                pass_id=action.pass_id,
                seed=action.seed,
                seed_step=action.seed_step,
                no_backward=not action.has_backward,
                autocast=_number_of(action.autocast),
            )
            return _around(outer, _FORWARD, action.hidden, inside, packing)
        case BackwardPass():
            inside = pb.BackwardPass(
                pass_id=action.pass_id,
                wants_gradient=action.wants_gradient,
                accumulate=action.accumulate,
                scale=action.scale,
            )
            return _around(outer, _BACKWARD, action.gradient, inside, packing)
        case StartTraining():
            outer.start_training.CopyFrom(_start(action))
        case Update():
            options = map(said, action.options)
            outer.update.CopyFrom(pb.Update(update_id=action.update_id, options=options, scale=action.scale))
        case ReadTraining():
            outer.read_training.CopyFrom(pb.ReadTraining(first=action.first))
        case WriteTraining():
            outer.write_training.CopyFrom(pb.WriteTraining(state=encode_training_state(action.state)))
        case PublishAdapter():
            outer.publish_adapter.CopyFrom(pb.PublishAdapter(name=action.name))
        case FreeAdapter():
            outer.free_adapter.CopyFrom(pb.FreeAdapter(name=action.name))
        case _:
            assert_never(action)
    return outer.SerializeToString()


def training_action(message: pb.SessionRequest, take: TakeTensor, max_bytes: int) -> TrainingAction | None:
    """What a message of training asks for; None for another.

    Raises:
        InvalidRequestError: It is malformed.
    """
    match message.WhichOneof("action"):
        case "forward_pass":
            came = message.forward_pass
            mask, positions = attention_mask_of(came), position_ids_of(came)
            autocast = _dtype_of(came.autocast)
            rest = came.seed, came.seed_step, not came.no_backward, autocast
            return ForwardPass(came.pass_id, take(came.tensor), mask, positions, *rest)
        case "backward_pass":
            back = message.backward_pass
            scale = back.scale if back.HasField("scale") else None
            return BackwardPass(back.pass_id, take(back.tensor), back.wants_gradient, back.accumulate, scale)
        case "start_training":
            return _start_of(message.start_training, max_bytes)
        case "update":
            update = message.update
            scale = update.scale if update.HasField("scale") else None
            return Update(update.update_id, tuple(map(heard, update.options)), scale)
        case "read_training":
            return ReadTraining(message.read_training.first)
        case "write_training":
            return WriteTraining(decode_training_state(message.write_training.state, max_bytes))
        case "publish_adapter":
            return PublishAdapter(message.publish_adapter.name)
        case "free_adapter":
            return FreeAdapter(message.free_adapter.name)
        case _:
            return None


def encode_training_state(state: TrainingState) -> pb.TrainingState:
    """A part of a training's state, as a message."""
    return pb.TrainingState(
        update_id=state.update_id, tensors=encode_named(state.tensors), num_tensors=state.num_tensors
    )


def decode_training_state(message: pb.TrainingState, max_bytes: int) -> TrainingState:
    """The part of a training's state in a message; raises `InvalidRequestError`."""
    return TrainingState(message.update_id, decode_named(message.tensors, max_bytes), message.num_tensors)


def _number_of(autocast: torch.dtype | None) -> pb.DType:
    return pb.DTYPE_UNSPECIFIED if autocast is None else ENUMS[autocast]  # type: ignore[return-value]


def _dtype_of(autocast: pb.DType) -> torch.dtype | None:
    if autocast == pb.DTYPE_UNSPECIFIED:
        return None
    if autocast not in DTYPES:
        raise InvalidRequestError(f"{autocast} is the number of no dtype: nothing runs under that autocast")
    return DTYPES[autocast]


def _around(
    outer: pb.SessionRequest, path: tuple[int, ...], tensor: torch.Tensor, beside: Message, packing: Packing
) -> Outgoing:
    return with_tensor(outer.SerializeToString(), path, tensor, beside.SerializeToString(), packing, _CHUNK)


def _start(action: StartTraining) -> pb.StartTraining:
    adapter = None
    if action.adapter is not None:
        adapter = pb.LowRankAdapter(config=said(action.adapter), tensors=encode_named(action.tensors))
    return pb.StartTraining(
        adapter=adapter,
        full=action.full,
        optimizer=action.optimizer,
        groups=[pb.ParameterGroup(names=group.names, options=said(group.options)) for group in action.groups],
        recompute=action.recompute,
        name=action.name,
    )


def _start_of(message: pb.StartTraining, max_bytes: int) -> StartTraining:
    has_adapter = message.HasField("adapter")
    return StartTraining(
        adapter=heard(message.adapter.config) if has_adapter else None,
        tensors=decode_named(message.adapter.tensors, max_bytes) if has_adapter else {},
        full=message.full,
        optimizer=message.optimizer,
        groups=tuple(ParameterGroup(tuple(group.names), heard(group.options)) for group in message.groups),
        recompute=message.recompute,
        name=message.name,
    )


def encode_named(tensors: Mapping[str, torch.Tensor]) -> list[pb.NamedTensor]:
    """Tensors with names, raw."""
    return [pb.NamedTensor(name=n, tensor=encode_payload(tensor, "raw").message()) for n, tensor in tensors.items()]


def decode_named(message: Iterable[pb.NamedTensor], max_bytes: int) -> dict[str, torch.Tensor]:
    """The tensors in messages, by name; raises `InvalidRequestError` or `MessageTooLargeError`."""
    payloads = {named.name: Payload.of(named.tensor) for named in message}
    num_bytes = sum(len(payload.data) for payload in payloads.values())
    if num_bytes > max_bytes:
        raise MessageTooLargeError(f"tensors of {num_bytes} bytes in one message: at most {max_bytes} are taken")
    return {name: decode_payload(payload, allowed=(), max_tensor_bytes=max_bytes) for name, payload in payloads.items()}


def said(options: Options) -> str:
    """Options as JSON. Raises `InvalidRequestError` for what JSON has no word for."""
    try:
        return json.dumps(dict(options), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"options are numbers, strings, truth values and lists: {error}") from error


def heard(text: str) -> dict[str, Any]:
    """Options of JSON. Raises `InvalidRequestError` where it is none, or no object."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("options have to be a JSON object; these are no JSON") from error
    if not isinstance(options, dict):
        raise InvalidRequestError(f"options have to be a JSON object; came a {type(options).__name__}")
    return options
