"""The course of a session over connections and servers: what to do next when one breaks, is lost, or asks to move.

Pure but for the clock: generators that say what is to be done and are told how it went. The synchronous and the asyncio
session are two shells that do it.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from splitlearn_comm.client.cursor import SessionCursor
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.replicas import ReplicaBook
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.errors import CommError, ServerUnavailableError, SessionNotFoundError
from splitlearn_comm.framing.chunks import Outgoing
from splitlearn_comm.framing.steps import Answer
from splitlearn_comm.messages import SessionState


@dataclass(frozen=True, slots=True)
class Connect:
    """Leave the stream there is, if any, and begin one to this server."""

    address: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send a message over the stream and wait for its answer."""

    message: Outgoing
    step_id: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for a while."""

    seconds: float


Effect = Connect | Exchange | Wait
"""What a shell does; it sends back the answer, or throws in the `CommError` with which it failed."""
Course = Generator[Effect, Any, Answer]


class SessionCourse:
    """Takes one session's messages to a server, and the session to another server when it has to be.

    Args:
        cursor: Where the session stands.
        book: The servers.
        statistics: Where to count.
    """

    def __init__(self, cursor: SessionCursor, book: ReplicaBook, statistics: ClientStatistics) -> None:
        self._cursor = cursor
        self._book = book
        self._statistics = statistics
        self._is_connected = False
        self._should_move = False

    def open(self, deadline: Deadline) -> Course:
        """Open the session; the answer is that of the server to the last message of it.

        Raises:
            CommError: It was refused, or no server can be reached.
        """
        return self._stubbornly(None, deadline)

    def exchange(self, message: Outgoing, deadline: Deadline) -> Course:
        """Get the answer to a step's message, over as many connections and servers as it takes.

        Raises:
            ServerUnavailableError: The session is lost.
            CommError: The step cannot be done.
        """
        return self._stubbornly(message, deadline)

    def _stubbornly(self, message: Outgoing | None, deadline: Deadline) -> Course:
        attempt = 1
        while True:
            was_connected = self._is_connected
            try:
                if self._should_move:
                    yield from self._move()
                if message is None or not self._is_connected:
                    answer = yield from self._connect()
                if message is not None:
                    answer = yield Exchange(message, self._cursor.step_id + 1)
                    self._note(answer)
                return answer
            except ServerUnavailableError as error:
                self._lose_connection(was_connected, error)
                delay_s = self._cursor.delay_after(error, attempt, deadline, may_retry=self._book.may_retry())
                # A stream that broke says nothing about the next one: that is tried at once.
                if not (was_connected and attempt == 1):
                    yield Wait(delay_s)
            attempt += 1

    def _note(self, answer: Answer) -> None:
        if answer.draining and self._book.has_others:
            self._should_move = True

    def _lose_connection(self, was_connected: bool, error: ServerUnavailableError) -> None:
        self._statistics.retries += 1
        if was_connected and self._cursor.home is not None:
            self._book.failed(self._cursor.home, time.monotonic(), error)
        self._is_connected = False

    def _connect(self, without: str | None = None, state: SessionState | None = None) -> Course:
        """Open, resume or rebuild the session at the first server where that works."""
        last: ServerUnavailableError | None = None
        for address in self._candidates(without):
            try:
                yield Connect(address)
                answer = yield from self._take_up(address, state)
            except ServerUnavailableError as error:
                self._book.failed(address, time.monotonic(), error)
                last = error
            else:
                self._book.succeeded(address)
                self._cursor.home, self._is_connected = address, True
                return answer
        assert last is not None, "there is a candidate"
        raise last

    def _candidates(self, without: str | None) -> list[str]:
        home = self._cursor.home
        if home is None or without is not None or self._cursor.can_go_elsewhere:
            return self._book.order(time.monotonic(), first=home, without=without)
        return [home]  # only the server that has the session's state can go on with it

    def _take_up(self, address: str, state: SessionState | None) -> Course:
        cursor = self._cursor
        if cursor.was_opened and address == cursor.home and state is None:
            resumed: Answer = yield Exchange(cursor.open_message(resume=True))
            if not (isinstance(resumed.error, SessionNotFoundError) and cursor.can_go_elsewhere):
                cursor.take_opened(resumed)
                return resumed
        was_opened = cursor.was_opened
        cursor.begin_anew()
        opened: Answer = yield Exchange(cursor.open_message(resume=False))
        cursor.take_opened(opened)
        if was_opened and cursor.step_id:
            yield from self._rebuild(state)
        return opened

    def _rebuild(self, state: SessionState | None) -> Generator[Effect, Any, None]:
        """Bring a new session to where the old one was: with its state, or by saying everything again."""
        if state is not None or not self._cursor.is_stateful:
            answer = yield Exchange(self._cursor.import_message(state))
            if answer.error is not None:
                raise answer.error
            return
        self._statistics.failovers += 1
        for number, message in enumerate(self._cursor.history, start=1):
            answer = yield Exchange(message, number)
            if answer.error is not None:
                raise answer.error
            self._statistics.replayed_steps += 1

    def _move(self) -> Generator[Effect, Any, None]:
        """Take the session, with its state, from a server that drains to another."""
        self._should_move = False
        answer = yield Exchange(self._cursor.export_message())
        if answer.state is None:
            return  # it cannot be exported: it stays until the server is gone, and is rebuilt then
        home = self._cursor.home
        try:
            yield from self._connect(without=home, state=answer.state)
        except CommError as error:
            self._is_connected = False
            if not isinstance(error, ServerUnavailableError):
                # Nobody else takes it as it is: as if this server had been lost.
                raise ServerUnavailableError(f"no other server takes the session: {error}") from error
            raise
        self._statistics.moves += 1
