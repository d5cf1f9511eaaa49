"""A session, as a synchronous client sees it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch

from splitlearn_comm.checks import check_inputs
from splitlearn_comm.client.closing import Closing, closed_here
from splitlearn_comm.client.course import (
    Ask,
    Choose,
    Connect,
    Course,
    Effect,
    Exchange,
    Pause,
    Return,
    SessionCourse,
    Settle,
    Wait,
)
from splitlearn_comm.client.cursor import SessionCursor
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.settings import ClientSettings
from splitlearn_comm.client.statistics import StepBreakdown
from splitlearn_comm.client.stream import SyncStream
from splitlearn_comm.codec import CodecChoice
from splitlearn_comm.errors import CommError
from splitlearn_comm.framing import steps
from splitlearn_comm.logs import ids
from splitlearn_comm.messages import Action, Crop, Forward, Reorder, RoleCodecs, StartRecording
from splitlearn_comm.training import Trained, TrainingAction

logger = logging.getLogger("splitlearn_comm.client")
CLOSE_TIMEOUT_S = 5.0
"""How long the server may take to free a session; after that it does so by itself."""


class ClientSession:
    """State on the server, moved on step by step. Made by `GRPCComputeClient.session`; for one thread at a time.

    When the connection breaks it is made again and the last step repeated; the server does no step twice. When the
    server is lost, the session is rebuilt at another, or at the same after a restart, by sending again what it has
    sent; when the server drains, it moves to another with its state. A step that is refused changes nothing.
    """

    def __init__(
        self,
        connect: Callable[[str], SyncStream],
        choose: Callable[[str, Deadline], CodecChoice],
        ask_all: Callable[[Deadline], None],
        closing: Closing,
        settings: ClientSettings,
        cursor: SessionCursor,
        course: SessionCourse,
    ) -> None:
        self._connect = connect
        self._choose = choose
        self._ask_all = ask_all
        self._closing = closing
        self._course = course
        self._settings = settings
        self._cursor = cursor
        self._stream: SyncStream | None = None
        self._put_aside: SyncStream | None = None
        self._in_step = threading.Lock()  # by its user: of two of them one is wrong
        self._in_use = threading.Lock()  # by its user, or on its way to another server
        self._is_closing = False
        deadline = Deadline.after(settings.open_timeout_s)
        with self._in_use:
            self._follow(course.open(deadline), deadline)

    def __repr__(self) -> str:
        return repr(self._cursor)

    @property
    def session_id(self) -> str:
        """The session's name on the server."""
        return self._cursor.session_id

    @property
    def position(self) -> int:
        """Tokens in the session's cache."""
        return self._cursor.position

    @property
    def codec_choice(self) -> CodecChoice | None:
        """What `codec="auto"` has chosen for this session, and why; None where a codec is named."""
        return self._cursor.codec_choice

    @property
    def codecs(self) -> RoleCodecs:
        """The codecs that its tensors go through, in each role and direction."""
        return self._cursor.codecs

    @property
    def breakdown(self) -> StepBreakdown | None:
        """Where the time of the last step went; None without the client's option `timings`."""
        return self._cursor.breakdown

    @property
    def is_server_stopping(self) -> bool:
        """Whether the server has said that it is about to stop: what trains there is to be saved now."""
        return self._cursor.is_server_stopping

    def step(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        timeout_s: float | None = None,
    ) -> torch.Tensor:
        """Run hidden states through the server's layers and append them to the cache.

        Args:
            hidden: [B, T, H], of the server's dtype, on any device.
            attention_mask: [B, past + T], bool or integer; None for no padding.
            position_ids: [B, T], integer; None to go on from the cache.
            timeout_s: How long it may take; by default the client's.

        Returns:
            [B, T, H] on the CPU.

        Raises:
            CommError: One of its kinds; see `splitlearn_comm.errors`.
        """
        check_inputs(hidden, attention_mask, position_ids)
        output = self._run(Forward(hidden, attention_mask, position_ids), timeout_s)
        assert output is not None, "the cursor checks that a forward is answered by a tensor"
        return output

    def reorder(self, indices: Sequence[int] | torch.Tensor, *, timeout_s: float | None = None) -> None:
        """Make row i of the cache what row indices[i] was; the batch size becomes len(indices)."""
        self._run(Reorder(tuple(int(index) for index in indices)), timeout_s)

    def crop(self, num_tokens: int, *, timeout_s: float | None = None) -> None:
        """Forget the newest `num_tokens` tokens."""
        self._run(Crop(num_tokens), timeout_s)

    def start_recording(self, *, timeout_s: float | None = None) -> None:
        """Keep from here on what is needed to crop layers whose cache forgets by itself."""
        self._run(StartRecording(), timeout_s)

    def train(self, action: TrainingAction, *, timeout_s: float | None = None) -> Trained:
        """Do one step of training; the first makes the session one of training, which no other server can go on with.

        Args:
            action: What is to be done.
            timeout_s: How long it may take; by default the client's for this kind of step.

        Returns:
            What came back: of a forward pass the hidden states too are in `gradient`'s place.

        Raises:
            PassExpiredError: The pass is not kept any more.
            StaleGradientError: The weights have changed since its forward.
            CommError: One of its other kinds.
        """
        usual_s = self._settings.training_timeout_s(action)
        answer = self._exchange(action, Deadline.of_step(timeout_s, usual_s))
        return Trained(answer.tensor, answer.gradient_norms, answer.training_state)

    def close(self) -> None:
        """End the session. May be called twice, and when the server is gone."""
        self._is_closing = True
        # Behind a step that another waits for, its answer would be taken for the answer to this.
        if not self._in_step.acquire(blocking=False):
            self._end(None)
            return
        try:
            deadline = Deadline.after(CLOSE_TIMEOUT_S)
            # On its way to another server, it is closed there.
            if not self._in_use.acquire(timeout=CLOSE_TIMEOUT_S):
                self._end(None)
                return
            try:
                self._end(deadline)
            finally:
                self._in_use.release()
        finally:
            self._in_step.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _end(self, deadline: Deadline | None) -> None:
        """End the session here; at the server too, where it may be asked."""
        try:
            if deadline is not None and self._stream is not None and not self._cursor.is_over:
                with contextlib.suppress(CommError):
                    self._follow(self._course.close(), deadline, is_step=False)
        finally:
            self._cursor.end()
            self._closing.wake()
            self._drop_stream()

    def _run(self, action: Action, timeout_s: float | None) -> torch.Tensor | None:
        return self._exchange(action, Deadline.of_step(timeout_s, self._settings.step_timeout_s)).tensor

    def _exchange(self, action: Action | TrainingAction, deadline: Deadline) -> steps.Answer:
        if not self._in_step.acquire(blocking=False):
            if self._is_closing:
                raise closed_here()
            raise RuntimeError("two threads use one session at the same time; open one for each")
        try:
            if not self._in_use.acquire(blocking=False):
                self._wait_for_leave(deadline)
            try:
                message = self._cursor.step_message(action)
                answer = self._follow(self._course.exchange(message, deadline), deadline)
                self._cursor.take_answer(answer, len(message))
                return answer
            finally:
                self._in_use.release()
        finally:
            self._in_step.release()

    def _wait_for_leave(self, deadline: Deadline) -> None:
        if not self._in_use.acquire(timeout=min(deadline.remaining_s(), threading.TIMEOUT_MAX)):
            raise deadline.exceeded()

    def _leave_soon(self, stream: SyncStream) -> None:
        threading.Thread(target=self._leave, args=(stream,), name="splitlearn-leave", daemon=True).start()

    def _leave(self, stream: SyncStream) -> None:
        """Take the session to another server while its user does nothing with it."""
        # A step that is under way sees for itself that the stream has ended.
        if not self._in_use.acquire(blocking=False):
            return
        try:
            if stream is self._stream and not self._cursor.is_over:
                deadline = Deadline.after(self._settings.open_timeout_s)
                self._follow(self._course.leave(deadline), deadline, is_step=False)
        except CommError as error:
            name = self.session_id
            logger.info("session %s stays where it was for now: %s", name, error, extra=ids(session=name))
        finally:
            self._in_use.release()

    def _follow(self, course: Course, deadline: Deadline, *, is_step: bool = True) -> steps.Answer:
        """Do what a course says; returns the answer that it ends with."""
        try:
            effect = next(course)
            while True:
                try:
                    result = self._perform(effect, deadline)
                except CommError as error:
                    effect = course.throw(error)
                else:
                    effect = course.send(result)
        except StopIteration as end:
            answer: steps.Answer = end.value
            return answer
        except BaseException as error:
            course.close()
            # What the server has done is unknown now; another step could be answered with this one's result.
            if is_step:
                self._cursor.end(error if isinstance(error, CommError) else CommError("a step was interrupted"))
            self._settle()
            self._drop_stream()
            raise

    def _perform(self, effect: Effect, deadline: Deadline) -> steps.Answer | CodecChoice | None:
        match effect:
            case Exchange(message, step_id, awaited):
                if self._stream is None:
                    raise closed_here()  # by another, just now: a course connects before it exchanges
                return self._stream.exchange(message, deadline, step_id, awaited)
            case Ask():
                self._ask_all(deadline)
            case Choose(address):
                return self._choose(address, deadline)
            case Connect(address, keeps_other):
                if keeps_other:
                    self._put_aside, self._stream = self._stream, None
                self._drop_stream()
                self._stream = stream = self._connect(address)
                if self._cursor.is_over:
                    raise closed_here()  # by another, while this waited; from here on that ends this stream
                stream.when_called_away(self._leave_soon)
            case Return():
                self._drop_stream()
                self._stream, self._put_aside = self._put_aside, None
            case Settle():
                self._settle()
            case Wait(seconds):
                self._drop_stream()
                self._pause(seconds)
            case Pause(seconds):
                self._pause(seconds)
        return None

    def _pause(self, seconds: float) -> None:
        self._closing.pause(seconds, lambda: self._cursor.is_over)

    def _settle(self) -> None:
        stream, self._put_aside = self._put_aside, None
        if stream is not None:
            stream.close()

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
