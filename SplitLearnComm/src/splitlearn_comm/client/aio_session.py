"""A session, as an asyncio client sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch

from splitlearn_comm.client.aio_stream import AsyncStream
from splitlearn_comm.client.cursor import SessionCursor
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.session import CLOSE_TIMEOUT_S
from splitlearn_comm.client.settings import ClientSettings
from splitlearn_comm.client.statistics import StepBreakdown
from splitlearn_comm.errors import CommError, ServerUnavailableError
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.chunks import Outgoing
from splitlearn_comm.messages import Action, Crop, Forward, Reorder, StartRecording


class AsyncClientSession:
    """State on the server, moved on step by step. Made by `AsyncComputeClient.session`; for one task at a time.

    It opens at the first step, at `open` or on entering `async with`. When the connection breaks it is made again and
    the last step repeated; the server does no step twice. A step that is refused changes nothing.
    """

    def __init__(self, connect: Callable[[], AsyncStream], settings: ClientSettings, cursor: SessionCursor) -> None:
        self._connect = connect
        self._settings = settings
        self._cursor = cursor
        self._stream: AsyncStream | None = None
        self._is_in_use = False

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
    def breakdown(self) -> StepBreakdown | None:
        """Where the time of the last step went; None without the client's option `timings`."""
        return self._cursor.breakdown

    async def open(self) -> None:
        """Open the session now, so that a refusal comes before the first step."""
        await self._exchange(None, Deadline.after(self._settings.connect_timeout_s))

    async def step(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        timeout_s: float | None = None,
    ) -> torch.Tensor:
        """Run hidden states through the server's layers; as `ClientSession.step`."""
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
        stream, self._stream = self._stream, None
        is_polite = stream is not None and not self._cursor.is_over
        self._cursor.end()
        if stream is None:
            return
        if is_polite:
            with contextlib.suppress(CommError):
                await stream.exchange(steps.encode_close(), Deadline.after(CLOSE_TIMEOUT_S))
        stream.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, action: Action, timeout_s: float | None) -> torch.Tensor | None:
        if self._is_in_use:
            raise RuntimeError("two tasks use one session at the same time; open one for each")
        self._is_in_use = True
        try:
            message = self._cursor.step_message(action)
            answer = await self._exchange(message, Deadline.after(timeout_s or self._settings.timeout_s))
            assert answer is not None, "only opening has no answer"
            return self._cursor.take_answer(answer, len(message))
        finally:
            self._is_in_use = False

    async def _exchange(self, message: Outgoing | None, deadline: Deadline) -> steps.Answer | None:
        """Send a message (None: only open) and return its answer, over as many connections as it takes."""
        try:
            return await self._exchange_stubbornly(message, deadline)
        except BaseException as error:
            # What the server has done is unknown now; another step could be answered with this one's result.
            self._cursor.end(error if isinstance(error, CommError) else CommError("a step was interrupted"))
            self._drop_stream()
            raise

    async def _exchange_stubbornly(self, message: Outgoing | None, deadline: Deadline) -> steps.Answer | None:
        attempt = 1
        while True:
            try:
                stream = self._stream or await self._open_stream(deadline)
                return await stream.exchange(message, deadline, self._cursor.step_id + 1) if message else None
            except ServerUnavailableError as error:
                self._drop_stream()
                await asyncio.sleep(self._cursor.delay_after(error, attempt, deadline))
            attempt += 1

    async def _open_stream(self, deadline: Deadline) -> AsyncStream:
        self._stream = stream = self._connect()
        self._cursor.take_opened(await stream.exchange(self._cursor.open_message(), deadline))
        return stream

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
