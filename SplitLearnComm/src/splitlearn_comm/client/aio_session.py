"""A session, as an asyncio client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

import torch

from splitlearn_comm.checks import check_inputs
from splitlearn_comm.client.aio_stream import AsyncStream
from splitlearn_comm.client.closing import AsyncClosing, closed_here
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
from splitlearn_comm.client.session import CLOSE_TIMEOUT_S
from splitlearn_comm.client.settings import ClientSettings
from splitlearn_comm.client.statistics import StepBreakdown
from splitlearn_comm.codec import CodecChoice
from splitlearn_comm.errors import CommError, DeadlineExceededError
from splitlearn_comm.framing import steps
from splitlearn_comm.logs import ids
from splitlearn_comm.messages import Action, Crop, Forward, Reorder, RoleCodecs, StartRecording

logger = logging.getLogger("splitlearn_comm.client")


class AsyncClientSession:
    """State on the server, moved on step by step. Made by `AsyncComputeClient.session`; for one task at a time.

    It opens at the first step, at `open` or on entering `async with`; otherwise it is what `ClientSession` is.
    """

    def __init__(
        self,
        connect: Callable[[str], AsyncStream],
        choose: Callable[[str, Deadline], Awaitable[CodecChoice]],
        ask_all: Callable[[Deadline], Awaitable[None]],
        closing: AsyncClosing,
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
        self._stream: AsyncStream | None = None
        self._put_aside: AsyncStream | None = None
        self._is_in_use = self._is_closing = False
        self._leaving: asyncio.Task[None] | None = None

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
        """What `codec="auto"` has chosen for this session, and why; None before it opens, or if one is named."""
        return self._cursor.codec_choice

    @property
    def codecs(self) -> RoleCodecs:
        """The codecs that its tensors go through, in each role and direction."""
        return self._cursor.codecs

    @property
    def breakdown(self) -> StepBreakdown | None:
        """Where the time of the last step went; None without the client's option `timings`."""
        return self._cursor.breakdown

    async def open(self) -> None:
        """Open the session now, so that a refusal comes before the first step."""
        deadline = Deadline.after(self._settings.open_timeout_s)
        self._begin_use()
        try:
            await self._follow(self._course.open(deadline), deadline)
        finally:
            self._is_in_use = False

    async def step(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        timeout_s: float | None = None,
    ) -> torch.Tensor:
        """Run hidden states through the server's layers; as `ClientSession.step`."""
        check_inputs(hidden, attention_mask, position_ids)
        output = await self._run(Forward(hidden, attention_mask, position_ids), timeout_s)
        assert output is not None, "the cursor checks that a forward is answered by a tensor"
        return output

    async def reorder(self, indices: Sequence[int] | torch.Tensor, *, timeout_s: float | None = None) -> None:
        """Make row i of the cache what row indices[i] was; the batch size becomes len(indices)."""
        await self._run(Reorder(tuple(int(index) for index in indices)), timeout_s)

    async def crop(self, num_tokens: int, *, timeout_s: float | None = None) -> None:
        """Forget the newest `num_tokens` tokens."""
        await self._run(Crop(num_tokens), timeout_s)

    async def start_recording(self, *, timeout_s: float | None = None) -> None:
        """Keep from here on what is needed to crop layers whose cache forgets by itself."""
        await self._run(StartRecording(), timeout_s)

    async def close(self) -> None:
        """End the session. May be called twice, and when the server is gone."""
        deadline = Deadline.after(CLOSE_TIMEOUT_S)
        # Behind a step that another waits for, its answer would be taken for the answer to this.
        is_polite = not self._is_in_use and await self._has_left(deadline) and not self._cursor.is_over
        self._is_closing = True
        try:
            if is_polite and self._stream is not None:
                self._is_in_use = True
                with contextlib.suppress(CommError):
                    await self._follow(self._course.close(), deadline, is_step=False)
                self._is_in_use = False
        finally:
            self._cursor.end()
            self._closing.wake()
            if self._leaving is not None:
                self._leaving.cancel()  # a write over a stream that is still to connect does not end with that
            self._drop_stream()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, action: Action, timeout_s: float | None) -> torch.Tensor | None:
        deadline = Deadline.of_step(timeout_s, self._settings.step_timeout_s)
        self._begin_use()
        try:
            if self._leaving is not None and not await self._has_left(deadline):
                raise deadline.exceeded()
            message = self._cursor.step_message(action)
            answer = await self._follow(self._course.exchange(message, deadline), deadline)
            return self._cursor.take_answer(answer, len(message))
        finally:
            self._is_in_use = False

    def _begin_use(self) -> None:
        """Note that its user does something with it: from here on it does not leave by itself."""
        if self._is_in_use:
            if self._is_closing or self._cursor.is_over:
                raise closed_here()
            raise RuntimeError("two tasks use one session at the same time; open one for each")
        self._is_in_use = True

    async def _has_left(self, deadline: Deadline) -> bool:
        """Wait until the session is not on its way to another server; False if it still is at the deadline."""
        while (leaving := self._leaving) is not None and not leaving.done():
            try:
                await asyncio.wait({leaving}, timeout=deadline.remaining_s())
            except DeadlineExceededError:
                return False
        return True

    def _leave_soon(self, stream: AsyncStream) -> None:
        # A step that is under way sees for itself that the stream has ended.
        if stream is self._stream and not self._is_in_use and not self._cursor.is_over and self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(stream))

    async def _leave(self, stream: AsyncStream) -> None:
        """Take the session to another server while its user does nothing with it."""
        try:
            if await stream.was_called_away():
                deadline = Deadline.after(self._settings.open_timeout_s)
                await self._follow(self._course.leave(deadline), deadline, is_step=False)
        except CommError as error:
            name = self.session_id
            logger.info("session %s stays where it was for now: %s", name, error, extra=ids(session=name))
        finally:
            self._leaving = None

    async def _follow(self, course: Course, deadline: Deadline, *, is_step: bool = True) -> steps.Answer:
        """Do what a course says; returns the answer that it ends with."""
        try:
            effect = next(course)
            while True:
                try:
                    result = await self._perform(effect, deadline)
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

    async def _perform(self, effect: Effect, deadline: Deadline) -> steps.Answer | CodecChoice | None:
        match effect:
            case Exchange(message, step_id, awaited):
                if self._stream is None:
                    raise closed_here()  # by another, just now: a course connects before it exchanges
                return await self._stream.exchange(message, deadline, step_id, awaited)
            case Ask():
                await self._ask_all(deadline)
            case Choose(address):
                return await self._choose(address, deadline)
            case Connect(address, keeps_other):
                if self._cursor.is_over:
                    raise closed_here()  # by another, while this waited
                if keeps_other:
                    self._put_aside, self._stream = self._stream, None
                self._drop_stream()
                self._stream = self._connect(address)
                self._stream.when_ended(self._leave_soon)
            case Return():
                self._drop_stream()
                self._stream, self._put_aside = self._put_aside, None
            case Settle():
                self._settle()
            case Wait(seconds):
                self._drop_stream()
                await self._pause(seconds)
            case Pause(seconds):
                await self._pause(seconds)
        return None

    async def _pause(self, seconds: float) -> None:
        await self._closing.pause(seconds, lambda: self._cursor.is_over)

    def _settle(self) -> None:
        stream, self._put_aside = self._put_aside, None
        if stream is not None:
            stream.close()

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
