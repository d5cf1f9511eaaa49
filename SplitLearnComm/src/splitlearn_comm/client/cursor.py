"""The client's side of a session: which step comes next, at which position, and what to say when things break.

Pure: makes messages and reads answers; the shells around it do the sending.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import torch

from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.history import History
from splitlearn_comm.client.settings import ClientSettings, check_size
from splitlearn_comm.client.statistics import StepBreakdown
from splitlearn_comm.client.watching import WatchedSession
from splitlearn_comm.codec import CodecChoice
from splitlearn_comm.errors import (
    CommError,
    InvalidRequestError,
    ResourceExhaustedError,
    ServerUnavailableError,
    SessionNotFoundError,
    StepOrderError,
)
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.assembly import Packing
from splitlearn_comm.framing.chunks import CHUNK_BYTES, Outgoing
from splitlearn_comm.messages import Action, Crop, Forward, KVEntries, SessionState
from splitlearn_comm.observer import Metadata
from splitlearn_comm.protocol import SESSION_METADATA
from splitlearn_comm.training import BackwardPass, ForwardPass, TrainingAction


class SessionCursor:
    """Where a session stands, as its client knows.

    Args:
        settings: The client's.
        expected_fingerprint: What the server's must be; None not to compare.
        adapter: Name of the adapter that it computes with; None for none.
    """

    def __init__(self, settings: ClientSettings, expected_fingerprint: str | None, adapter: str | None = None) -> None:
        self.session_id = uuid.uuid4().hex
        self.position = 0
        self.step_id = 0
        self.breakdown: StepBreakdown | None = None
        self._settings = settings
        self._limit_bytes = settings.max_message_bytes
        self.codecs = settings.plan.agreed
        self.codec_choice: CodecChoice | None = None
        self._packing = Packing(self.codecs.hidden.to_server)
        self._expected_fingerprint = expected_fingerprint
        self.adapter = adapter or ""
        self.was_opened = False
        self.is_stateful = True
        self.is_training = False
        """Whether it has trained: no other server can go on with it then."""
        self.is_server_stopping = False
        """Whether the server that it is on has said so."""
        self.home: str | None = None
        self.history = History(settings.replay_bytes)
        if self.adapter:
            # An adapter that trains has changed since, and another server has other values under the name, or none.
            self.history.give_up()
        self._base_id = self.session_id
        self._generation = 0
        self._was_turned_away = False
        self._action: Action | TrainingAction | None = None
        self._message: Outgoing = b""
        self._over: CommError | None = None
        self._refused: CommError | None = None
        self._began_s = 0.0
        self.watched = None if settings.observer is None else WatchedSession(settings.observer)

    def __repr__(self) -> str:
        state = "over" if self._over else "open" if self.was_opened else "new"
        return f"<session {self.session_id} at {self._settings.address}: step {self.step_id}, {self.position}, {state}>"

    @property
    def is_over(self) -> bool:
        """Whether no step can be done any more."""
        return self._over is not None

    @property
    def can_go_elsewhere(self) -> bool:
        """Whether another server can be brought to where this session is."""
        return not self.was_opened or not self.step_id or not self.is_stateful or self.history.is_complete

    @property
    def must_choose(self) -> bool:
        """Whether the codec of hidden states is still to be chosen; once it is, it stays, at other servers too."""
        return self.codec_choice is None and self._settings.auto is not None

    def take_choice(self, choice: CodecChoice) -> None:
        """Note what was chosen, before the session opens."""
        self.codec_choice = choice
        self.codecs = self._settings.plan.with_hidden(choice.codec)
        self._packing = Packing(self.codecs.hidden.to_server)

    @property
    def service(self) -> str:
        """The model that it is for; empty where that is left open."""
        return self._settings.service

    def note_turned_away(self) -> None:
        """Note that a server that stops did not open the session: a proxy finds another under another name."""
        self._was_turned_away = True

    def begin_anew(self) -> None:
        """Take another name: a server may still have the session under the old one."""
        self.is_server_stopping = False
        if self.was_opened or self._was_turned_away:
            self._generation += 1
            self.session_id = f"{self._base_id}.{self._generation}"

    def note_refusal(self, error: CommError) -> None:
        """Note that the next step was refused: from here on, until a stream is opened, none is under way."""
        self._refused = error

    def is_lost(self, resumed: steps.Answer) -> bool:
        """Whether the server that was asked to go on with the session has it no more, and it has to be rebuilt.

        Raises:
            CommError: It cannot be rebuilt, the server refuses for another reason, or what was refused last has ended
                the session.
        """
        if resumed.error is None and self._is_whole(resumed):
            return False
        was_ended = self._refused is not None and not isinstance(self._refused, ResourceExhaustedError)
        if resumed.error is not None and (was_ended or not isinstance(resumed.error, SessionNotFoundError)):
            raise resumed.error
        if not self.can_go_elsewhere:
            raise resumed.error or StepOrderError(
                f"the server has done {resumed.step_id} steps of session {self.session_id}, expected {self.step_id}; "
                f"open a new session and send the whole sequence again"
            )
        return True

    def _is_whole(self, resumed: steps.Answer) -> bool:
        # The step under way may be done. One that was refused may not: a repeat of its message on the way did that.
        return resumed.step_id == self.step_id or (resumed.step_id == self.step_id + 1 and self._refused is None)

    def metadata(self) -> Metadata:
        """What goes with a stream of the session."""
        named = (SESSION_METADATA, self.session_id)
        return (*self._settings.metadata(), named, *(self.watched.metadata() if self.watched else ()))

    def open_message(self, *, resume: bool, can_move: bool) -> bytes:
        """The message that opens the session, or goes on with it on a new stream."""
        opening = steps.Open(
            session_id=self.session_id,
            expected_fingerprint=self._expected_fingerprint or "",
            resume=resume,
            chunk_bytes=CHUNK_BYTES,
            codecs=self.codecs,
            timings=self._settings.timings,
            can_move=can_move,
            adapter=self.adapter,
        )
        return steps.encode_open(opening, self.position)

    def export_message(self) -> bytes:
        """The message that asks for the session's state."""
        return steps.encode_export(self.step_id, self.position)

    def import_message(self, state: SessionState | None) -> bytes:
        """The message that puts a state into the new session; None for one that is nothing but a position."""
        state = state or SessionState(KVEntries((), self.position), None)
        return steps.encode_import(self.step_id, state, self.codecs.kv.to_server)

    def take_opened(self, answer: steps.Answer) -> None:
        """Note what the server says of itself that has the session from here on; raises what it refused it with."""
        opened = check_opened(answer)
        self.was_opened, self._refused = True, None
        # From here on only servers of the same will do.
        self._expected_fingerprint = self._expected_fingerprint or opened.fingerprint or None
        if not opened.stateful and self.is_stateful:
            self.is_stateful = False
            self.history.give_up()
        self._limit_bytes = min(self._settings.max_message_bytes, opened.max_message_bytes or self._limit_bytes)
        self._packing = replace(self._packing, chunk_bytes=min(CHUNK_BYTES, opened.chunk_bytes))

    def step_message(self, action: Action | TrainingAction) -> Outgoing:
        """The message of the next step.

        Raises:
            MessageTooLargeError: It is over the limit of either side.
            InvalidRequestError: It can be seen from here that it makes no sense.
            CommError: The session is over.
        """
        if self._over is not None:
            reason = str(self._over)
            raise type(self._over)(
                reason if self.session_id in reason else f"session {self.session_id} is over: {reason}"
            )
        if isinstance(action, Crop) and action.num_tokens < 0:
            raise InvalidRequestError(
                f"crop removes tokens from the end: expected at least 0, came {action.num_tokens}"
            )
        self._action, self._began_s = action, time.perf_counter()
        packing = self._packing
        if isinstance(action, TrainingAction):
            # What trained a server cannot be said again to another: it would train twice what came behind.
            self.history.give_up()
            self.is_training = True
            if isinstance(action, BackwardPass):
                packing = replace(packing, codec=self.codecs.gradient.to_server)
        self._message = check_size(
            steps.encode_step(self.step_id + 1, self.position, action, packing), self._limit_bytes
        )
        if self.watched is not None:
            self.watched.begin_step(action, self._began_s)
        return self._message

    def take_answer(self, answer: steps.Answer, bytes_sent: int) -> torch.Tensor | None:
        """Read the answer to a step; raises what the server refused it with, and then nothing has changed."""
        if self.watched is not None:
            self.watched.end_step(answer, self.step_id + 1, bytes_sent)
        if answer.error is not None:
            raise answer.error
        self.step_id, self.position = answer.step_id, answer.position
        self.is_server_stopping = self.is_server_stopping or answer.draining
        self.history.add(self._message)
        self._note_breakdown(answer, bytes_sent)
        if isinstance(self._action, Forward | ForwardPass) and answer.tensor is None:
            raise InvalidRequestError("the server answered a forward without a tensor")
        return answer.tensor

    def _note_breakdown(self, answer: steps.Answer, bytes_sent: int) -> None:
        if answer.timings is not None:
            self.breakdown = StepBreakdown(
                total_s=time.perf_counter() - self._began_s,
                queue_s=answer.timings.queue_s,
                compute_s=answer.timings.compute_s,
                serialise_s=answer.timings.serialise_s,
                bytes_sent=bytes_sent,
                bytes_received=answer.num_bytes,
            )

    def delay_after(self, error: CommError, attempt: int, deadline: Deadline, *, may_retry: bool = True) -> float:
        """Seconds to wait before the session is tried again; raises when it would be of no use."""
        try:
            if not may_retry:
                raise error
            return self._settings.retry.delay_after(error, attempt, deadline)
        except ServerUnavailableError:
            if not self.was_opened:
                raise
            # What to do about one server, said behind its semicolon, is not what to do about the session.
            reason, _, _ = str(error).partition(";")
            raise ServerUnavailableError(
                f"the server was lost in the middle of session {self.session_id}, at position {self.position}, and "
                f"{attempt} attempts did not bring it back ({reason}); "
                f"open a new session and send the whole sequence again"
            ) from error

    def end(self, reason: CommError | None = None) -> None:
        """Note that the session can do nothing more; the first reason is the one that counts."""
        closed = SessionNotFoundError("it was closed here; open another")
        self._over = self._over or reason or closed
        if self.watched is not None:
            self.watched.end(reason, self.step_id + 1)


def check_opened(answer: steps.Answer) -> steps.Opened:
    """What a server says of itself in the answer to an open; raises what it refused it with."""
    if answer.error is not None:
        raise answer.error
    if answer.opened is None:
        raise InvalidRequestError("the server answered an open with something else")
    return answer.opened
