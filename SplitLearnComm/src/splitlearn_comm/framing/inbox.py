"""Messages of a session, read: chunks put together, tensors taken from where they lie."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.framing.agreement import codecs_of
from splitlearn_comm.framing.caches import decode_cache
from splitlearn_comm.framing.chunks import ChunkBuffer
from splitlearn_comm.framing.fields import attention_mask_of, parse, position_ids_of
from splitlearn_comm.framing.locate import locate
from splitlearn_comm.framing.service import decode_error, load_of
from splitlearn_comm.framing.steps import (
    FORWARD_TENSOR,
    REQUEST_CHUNK,
    RESPONSE_CHUNK,
    RESPONSE_TENSOR,
    Answer,
    Close,
    Export,
    Import,
    Open,
    Opened,
    Request,
)
from splitlearn_comm.framing.tensors import TensorTaker, tensor_of
from splitlearn_comm.framing.training import decode_training_state, training_action
from splitlearn_comm.messages import (
    Action,
    Crop,
    Forward,
    Reorder,
    RoleCodecs,
    SessionState,
    StartRecording,
    Timings,
)
from splitlearn_comm.training import TrainingAction


class Inbox:
    """Reads the messages of one direction of one stream, chunks put together.

    Args:
        max_bytes: Largest tensor taken in chunks, or made of fewer bytes by a codec.
        max_state_bytes: Of a cache, uncoded, or of what a message of training has, all tensors together; None: as many.
    """

    def __init__(self, max_bytes: int, max_state_bytes: int | None = None) -> None:
        self.codecs: Collection[str] = ()
        """Names of the codecs that were agreed on for hidden states."""
        self.gradient_codecs: Collection[str] = ()
        """Names of those for gradients."""
        self.kv_codecs: Collection[str] = ()
        """Names of those for the session's state."""
        self._chunks = ChunkBuffer(max_bytes)
        self._max_bytes = max_bytes
        self._max_state_bytes = max_bytes if max_state_bytes is None else max_state_bytes
        self._requests = TensorTaker(FORWARD_TENSOR, max_bytes)
        self._answers = TensorTaker(RESPONSE_TENSOR, max_bytes)
        self._chunked_bytes = 0

    def agree(self, codecs: RoleCodecs) -> None:
        """Take tensors through these codecs from here on."""
        self.codecs, self.kv_codecs = codecs.hidden.names(), codecs.kv.names()
        self.gradient_codecs = codecs.gradient.names()

    def request(self, data: bytes) -> Request | None:
        """The request in the bytes; None for a chunk, which is kept for the message it belongs to.

        Raises:
            InvalidRequestError: There is none, it asks for nothing, or a tensor in it is malformed.
            MessageTooLargeError: A tensor in chunks is larger than what is taken.
            UnsupportedOperationError: A tensor came through a codec that was not agreed on.
        """
        taken = self._requests.take(data, self.codecs)
        # Beside another action the last one counts, and protobuf says which that is.
        if taken and (outer := parse(pb.SessionRequest, taken.outer)).WhichOneof("action") is None:
            mask, positions = _beside_of(taken.beside)
            return Request(outer.step_id, outer.position, Forward(taken.tensor, mask, positions), outer.timeout_ms)
        if self._take_chunk(data, REQUEST_CHUNK):
            return None
        message = parse(pb.SessionRequest, data)
        return Request(message.step_id, message.position, self._action_of(message), message.timeout_ms)

    def answer(self, data: bytes) -> Answer | None:
        """The answer in the bytes; None for a chunk, which is kept for the message it belongs to.

        Raises:
            InvalidRequestError: They are malformed.
        """
        taken = self._answers.take(data, self.codecs)
        if taken and (outer := parse(pb.SessionResponse, taken.outer)).WhichOneof("result") is None:
            return Answer(
                outer.step_id,
                outer.position,
                taken.tensor,
                draining=outer.draining,
                timings=_timings_of(outer),
                gradient_norms=tuple(outer.gradient_norms),
                num_bytes=len(data),
            )
        if self._take_chunk(data, RESPONSE_CHUNK):
            self._chunked_bytes += len(data)
            return None
        num_bytes, self._chunked_bytes = self._chunked_bytes + len(data), 0
        return replace(self._answer_of(parse(pb.SessionResponse, data)), num_bytes=num_bytes)

    def _take_chunk(self, data: bytes, number: int) -> bool:
        located = locate(data, (number, pb.TensorChunk.DATA_FIELD_NUMBER))
        if located is None:
            return False
        fields = parse(pb.TensorChunk, located.around[1])
        self._chunks.add(fields.offset, fields.total_bytes, memoryview(data)[located.begin : located.end])
        return True

    def _action_of(self, message: pb.SessionRequest) -> Action | TrainingAction | Open | Close | Export | Import:
        match message.WhichOneof("action"):
            case "forward":
                forward = message.forward
                return Forward(self._tensor_of(forward.tensor), attention_mask_of(forward), position_ids_of(forward))
            case "reorder":
                return Reorder(tuple(message.reorder.indices))
            case "crop":
                return Crop(message.crop.num_tokens)
            case "start_recording":
                return StartRecording()
            case "open":
                return _open_of(message)
            case "close":
                return Close()
            case "export":
                return Export()
            case "import_state":
                return Import(self._state_of(message.import_state.state))
            case _:
                return self._training_of(message)

    def _training_of(self, message: pb.SessionRequest) -> TrainingAction:
        action = training_action(message, self._tensor_of, self._max_state_bytes)
        if action is None:
            raise InvalidRequestError(
                "a session message without an action: expected open, forward, reorder, crop, start_recording, "
                "close, one of training, or a chunk with data"
            )
        return action

    def _answer_of(self, message: pb.SessionResponse) -> Answer:
        step_id, position = message.step_id, message.position
        common: dict[str, Any] = {
            "timings": _timings_of(message),
            "draining": message.draining,
            "gradient_norms": tuple(message.gradient_norms),
        }
        match message.WhichOneof("result"):
            case "training_state":
                state = decode_training_state(message.training_state, self._max_state_bytes)
                return Answer(step_id, position, training_state=state, **common)
            case "tensor":
                return Answer(step_id, position, self._tensor_of(message.tensor), **common)
            case "opened":
                came = message.opened
                opened = Opened(
                    came.max_message_bytes, came.chunk_bytes, came.stateful, came.fingerprint, load_of(came)
                )
                return Answer(step_id, position, opened=opened)
            case "state":
                return Answer(step_id, position, state=self._state_of(message.state), **common)
            case "error":
                return Answer(step_id, position, error=decode_error(message.error))
            case _:
                return Answer(step_id, position, **common)

    def _tensor_of(self, message: pb.TensorData) -> torch.Tensor:
        num_bytes = message.chunked_bytes
        data = self._chunks.take(num_bytes) if num_bytes else None
        return tensor_of(message, data, {*self.codecs, *self.gradient_codecs}, self._max_bytes)

    def _state_of(self, message: pb.SessionState) -> SessionState:
        cache = decode_cache(message.cache, self.kv_codecs, max_bytes=self._max_state_bytes)
        return SessionState(cache, message.batch if message.HasField("batch") else None)


def _open_of(message: pb.SessionRequest) -> Open:
    opening = message.open
    return Open(
        session_id=message.session_id,
        expected_fingerprint=opening.expected_fingerprint,
        resume=opening.resume,
        chunk_bytes=opening.chunk_bytes,
        codecs=RoleCodecs(
            hidden=codecs_of(opening.hidden), gradient=codecs_of(opening.gradient), kv=codecs_of(opening.kv)
        ),
        timings=opening.timings,
        can_move=opening.can_move,
        adapter=opening.adapter,
    )


def _timings_of(message: pb.SessionResponse) -> Timings | None:
    if not message.HasField("timings"):
        return None
    came = message.timings
    return Timings(queue_s=came.queue_s, compute_s=came.compute_s, serialise_s=came.serialise_s)


def _beside_of(serialised: bytes) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if not serialised:
        return None, None
    forward = parse(pb.Forward, serialised)
    return attention_mask_of(forward), position_ids_of(forward)
