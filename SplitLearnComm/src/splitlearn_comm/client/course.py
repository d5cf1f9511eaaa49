"""The course of a session over connections and servers: what to do next when one breaks, is lost, or asks to move.

Pure but for the clock: generators that say what is to be done and are told how it went. The synchronous and the asyncio
session are two shells that do it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from splitlearn_comm.client.address_book import AddressBook
from splitlearn_comm.client.awaited import Awaited
from splitlearn_comm.client.cursor import SessionCursor, check_opened
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import is_retried, worth_another_round
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.errors import (
    ClientClosedError,
    CommError,
    ResourceExhaustedError,
    ServerUnavailableError,
    ServiceNotFoundError,
)
from splitlearn_comm.framing.chunks import Outgoing
from splitlearn_comm.framing.steps import Answer, encode_close
from splitlearn_comm.logs import ids
from splitlearn_comm.messages import SessionState

logger = logging.getLogger("splitlearn_comm.client")
CLOSE_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the servers how busy they are, where that is not known."""


@dataclass(frozen=True, slots=True)
class Choose:
    """Choose the codec for this server; the answer is a `CodecChoice`."""

    address: str


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin a stream to this server; leave the one there is, if any, or put it aside."""

    address: str
    keeps_other: bool = False


@dataclass(frozen=True, slots=True)
class Return:
    """Leave the stream there is for the one that was put aside."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Leave the stream that was put aside."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send a message over the stream and wait for its answer."""

    message: Outgoing
    step_id: int
    awaited: Awaited = Awaited.STEP


@dataclass(frozen=True, slots=True)
class Wait:
    """Leave the stream there is, and do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for a while, and keep the stream."""

    seconds: float


Effect = Ask | Choose | Connect | Return | Settle | Exchange | Wait | Pause
"""What a shell does; it sends back the answer, if there is one, or throws in the `CommError` with which it failed."""
Course = Generator[Effect, Any, Answer]


class SessionCourse:
    """Takes one session's messages to a server, and the session to another server when it has to be.

    Args:
        cursor: Where the session stands.
        book: The servers.
        statistics: Where to count.
    """

    def __init__(self, cursor: SessionCursor, book: AddressBook, statistics: ClientStatistics) -> None:
        self._cursor = cursor
        self._book = book
        self._statistics = statistics
        self._is_connected = False
        self._should_move = False
        self._can_move = not cursor.adapter  # what is elsewhere under its name may be something else
        self._busy: ResourceExhaustedError | None = None
        self._busy_until_s = 0.0

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

    def leave(self, deadline: Deadline) -> Course:
        """Take the session away from the server that has ended its stream because it stops, while no step is under way.

        Raises:
            CommError: It could not be; the next step will see to it.
        """
        try:
            answer = yield from self._connect(deadline)
            if self._is_connected and self._is_movable:
                yield from self._move()
            return answer
        except BaseException:
            self._is_connected = False
            raise

    def close(self) -> Course:
        """Tell the server that the session is over; over a new connection where the one there is breaks.

        What it has not heard it would keep for a while, and the place that it takes.

        Raises:
            CommError: It was not reached.
        """
        # Higher than that of any step: a second answer to the last one is not taken for the answer to this.
        number = self._cursor.step_id + 2
        attempt = 1
        while True:
            try:
                if attempt > 1 and self._cursor.home is not None:
                    yield Connect(self._cursor.home)
                    yield Exchange(self._open_message(resume=True), 0, Awaited.OPENED)
                answer: Answer = yield Exchange(encode_close(number), number)
                return answer
            except ServerUnavailableError:
                if attempt == CLOSE_ATTEMPTS or self._cursor.home is None:
                    raise
            attempt += 1

    @property
    def _is_movable(self) -> bool:
        return self._can_move and not self._cursor.is_training

    def _stubbornly(self, message: Outgoing | None, deadline: Deadline) -> Course:
        attempt = 1
        while True:
            was_connected = self._is_connected
            try:
                if message is None or not self._is_connected:
                    answer = yield from self._connect(deadline)
                    if not self._is_connected:
                        return answer
                if self._should_move:
                    yield from self._move()
                if message is not None:
                    answer = yield Exchange(message, self._cursor.step_id + 1)
                    if answer.draining or answer.error is not None:
                        answer = yield from self._heed(answer, message, deadline)
                return answer
            except CommError as error:
                if not is_retried(error):
                    raise
                self._lose_connection()
                delay_s = self._delay_after(error, attempt, deadline)
                # A stream that broke says nothing about the next one: that is tried at once.
                if not (was_connected and attempt == 1 and isinstance(error, ServerUnavailableError)):
                    yield Wait(delay_s)
            attempt += 1

    def _delay_after(self, error: CommError, attempt: int, deadline: Deadline) -> float:
        return self._cursor.delay_after(error, attempt, deadline, may_retry=self._book.may_retry())

    def _told_delay_s(self, answer: Answer, attempt: int, deadline: Deadline) -> float | None:
        """Seconds after which the same may be asked again, where the server said so; None if it is not to be."""
        if not isinstance(answer.error, ResourceExhaustedError):
            return None
        try:
            return self._delay_after(answer.error, attempt, deadline)
        except ResourceExhaustedError:
            return None

    def _heed(self, answer: Answer, message: Outgoing, deadline: Deadline) -> Course:
        """Do what an answer says beside its result: that the server drains, or that it refuses the step."""
        attempt = 1
        while (delay_s := self._told_delay_s(answer, attempt, deadline)) is not None:
            yield Pause(delay_s)
            answer = yield Exchange(message, self._cursor.step_id + 1)
            attempt += 1
        if isinstance(answer.error, ServerUnavailableError):
            self._forsake(answer.error)
            raise answer.error
        if answer.error is not None:
            # Were the message doubled on its way, a second refusal would follow, and the step might even be done: the
            # next one goes over a stream of its own, and what comes over this one is nobody's.
            self._cursor.note_refusal(answer.error)
            self._note_busy(answer.error)
            self._is_connected = False
        elif answer.draining and self._book.has_others and self._is_movable:
            self._should_move = True
        return answer

    def _forsake(self, error: ServerUnavailableError) -> None:
        """Note that what served the session is gone, though the server that stood before it still answers."""
        if self._cursor.home is not None:
            self._book.failed(self._cursor.home, time.monotonic(), error)
        if self._cursor.can_go_elsewhere:
            self._cursor.home = None

    def _note_busy(self, error: CommError) -> None:
        if isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None:
            self._busy, self._busy_until_s = error, time.monotonic() + error.retry_after_s

    def _lose_connection(self) -> None:
        self._statistics.retries += 1
        self._is_connected = False

    def _connect(self, deadline: Deadline) -> Course:
        """Open, resume or rebuild the session at the first server where that works; or a refusal that changes nothing.

        Raises:
            CommError: It works nowhere, or not any more.
        """
        if not self._cursor.was_opened and self._book.is_balancing:
            yield Ask()
        failures: list[tuple[str, CommError]] = []
        for address in self._candidates():
            if any(address == tried and _is_out_of_reach(error) for tried, error in failures):
                continue  # what stands there several times is a proxy, and that is gone
            try:
                if self._cursor.must_choose:
                    self._cursor.take_choice((yield Choose(address)))
                answer = yield from self._take_up(address, deadline)
            except ServerUnavailableError as error:
                self._book.failed(address, time.monotonic(), error)
                failures.append((address, error))
            except (ResourceExhaustedError, ServiceNotFoundError) as error:
                failures.append((address, error))
            else:
                # Busy, it keeps the session: that is asked for again later, and not rebuilt elsewhere.
                if answer.error is None:
                    self._arrive(address, answer)
                return answer
        raise worth_another_round(failures)

    def _arrive(self, address: str, opened: Answer) -> None:
        self._book.succeeded(address)
        if self._cursor.home != address:
            load = opened.opened.load if opened.opened else None
            self._book.took(address, self._cursor.service, load, time.monotonic())
        self._cursor.home, self._is_connected, self._should_move = address, True, False

    def _candidates(self) -> list[str]:
        home = self._cursor.home
        if home is None or self._cursor.can_go_elsewhere:
            return self._book.choose(time.monotonic(), self._cursor.service, first=home)
        return [home]  # only the server that has the session's state can go on with it

    def _take_up(self, address: str, deadline: Deadline) -> Course:
        cursor = self._cursor
        if cursor.was_opened and address == cursor.home:
            resumed = yield from self._resume(address, deadline)
            if isinstance(resumed.error, ResourceExhaustedError):
                self._is_connected = False
                return resumed
            if not cursor.is_lost(resumed):
                cursor.take_opened(resumed)
                return resumed
        was_opened = cursor.was_opened
        # Until it is whole again no server has this session: an attempt that breaks half-way is not resumed.
        home, cursor.home, name = cursor.home, None, cursor.session_id
        try:
            opened = yield from self._open_anew(Connect(address))
            if was_opened and cursor.step_id:
                yield from self._rebuild(deadline)
            cursor.take_opened(opened)
        except BaseException:
            if home != address:
                # Another did not take it; the one before may still have it, under the name it had there.
                cursor.home, cursor.session_id = home, name
            raise
        return opened

    def _resume(self, address: str, deadline: Deadline) -> Course:
        """Ask the server that has the session to go on with it; where it is too busy, as often as may be."""
        attempt = 1
        # The server would not have read the stream that was left before; a new one must not come sooner.
        wait_s = self._busy_until_s - time.monotonic()
        if wait_s > 0:
            if not deadline.allows(wait_s):
                return self._refused(self._busy)
            yield Wait(wait_s)
        while True:
            yield Connect(address)
            try:
                answer: Answer = yield Exchange(self._open_message(resume=True), 0, Awaited.OPENED)
            except ResourceExhaustedError as error:
                answer = self._refused(error)
            delay_s = self._told_delay_s(answer, attempt, deadline)
            if delay_s is None:
                if answer.error is not None:
                    self._note_busy(answer.error)
                return answer
            yield Wait(delay_s)
            attempt += 1

    def _open_message(self, *, resume: bool) -> bytes:
        return self._cursor.open_message(resume=resume, can_move=self._book.has_others and self._is_movable)

    def _refused(self, error: CommError | None) -> Answer:
        return Answer(self._cursor.step_id, self._cursor.position, error=error)

    def _open_anew(self, connect: Connect) -> Course:
        self._cursor.begin_anew()  # before the stream, which tells proxies the session's name
        yield connect
        opened: Answer = yield Exchange(self._open_message(resume=False), 0, Awaited.OPENED)
        if isinstance(opened.error, ServerUnavailableError):
            self._cursor.note_turned_away()
        check_opened(opened)
        return opened

    def _rebuild(self, deadline: Deadline) -> Generator[Effect, Any, None]:
        """Bring a new session to where the old one was, by saying everything again."""
        if not self._cursor.is_stateful:
            yield from self._import(None)
            return
        self._statistics.failovers += 1
        for number, message in enumerate(self._cursor.history, start=1):
            answer: Answer = yield Exchange(message, number)
            while isinstance(answer.error, ResourceExhaustedError):
                # It all comes at once, faster than it was said the first time.
                told_s = answer.error.retry_after_s
                if told_s is None or not deadline.allows(told_s):
                    break
                yield Pause(told_s)
                answer = yield Exchange(message, number)
            if answer.error is not None:
                raise answer.error
            self._statistics.replayed_steps += 1
        name, num_steps = self._cursor.session_id, len(self._cursor.history)
        told = ids(session=name, step=self._cursor.step_id)
        logger.info("session %s was rebuilt: its %d steps were said again", name, num_steps, extra=told)

    def _import(self, state: SessionState | None) -> Generator[Effect, Any, None]:
        answer: Answer = yield Exchange(self._cursor.import_message(state), self._cursor.step_id, Awaited.IMPORTED)
        if answer.error is not None:
            raise answer.error

    def _move(self) -> Generator[Effect, Any, None]:
        """Take the session, with its state, from a server that drains to another; stay if nobody takes it."""
        self._should_move = False
        answer: Answer = yield Exchange(self._cursor.export_message(), self._cursor.step_id, Awaited.STATE)
        if answer.state is None:
            self._can_move = False  # it stays until the server is gone, and is rebuilt then
            return
        cursor, home, name = self._cursor, self._cursor.home, self._cursor.session_id
        try:
            addresses = self._book.choose(time.monotonic(), cursor.service, without=home)
        except ServerUnavailableError:
            return
        for address in addresses:
            try:
                opened = yield from self._open_anew(Connect(address, keeps_other=True))
                yield from self._import(answer.state)
            except ClientClosedError:
                raise
            except CommError as error:
                if isinstance(error, ServerUnavailableError):
                    self._book.failed(address, time.monotonic(), error)
                cursor.session_id = name
                yield Return()
            else:
                cursor.take_opened(opened)
                yield Settle()
                self._arrive(address, opened)
                self._statistics.moves += 1
                told = ids(session=cursor.session_id, step=cursor.step_id)
                logger.info("session %s moved from %s to %s", cursor.session_id, home, address, extra=told)
                return


def _is_out_of_reach(error: CommError) -> bool:
    """Whether nobody has answered at all: what a server says has the name of the call."""
    return isinstance(error, ServerUnavailableError) and not error.request_id
