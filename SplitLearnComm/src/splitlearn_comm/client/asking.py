"""Servers are asked how busy they are, all at once and for a moment, before one of them is chosen."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import splitlearn_comm.protocol as protocol
from splitlearn_comm.client.address_book import AddressBook
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.errors import ClientClosedError, CommError
from splitlearn_comm.framing import service

_QUESTION = service.encode_health_question(with_load=True)


class _Asked:
    """What is asked of whom, and what is noted of the answers."""

    def __init__(self, book: AddressBook, service_name: str) -> None:
        self._book = book
        self._service = service_name

    def addresses(self, for_call: bool) -> Sequence[str]:
        """Who is to be asked now."""
        return self._book.to_ask(time.monotonic(), self._service, for_call=for_call)

    def patience(self, deadline: Deadline) -> Deadline:
        """Until when, if all has to be over by the deadline."""
        return Deadline.after(min(self._book.patience_s, deadline.remaining_s()))

    def note(self, address: str, reply: bytes) -> None:
        """Note an answer."""
        self._book.heard(address, self._service, service.decode_health(reply), time.monotonic())

    def note_failure(self, address: str, error: CommError) -> None:
        """Note that there was none; raises where that is because the client was closed."""
        if isinstance(error, ClientClosedError):
            raise error
        self._book.unheard(address, self._service, time.monotonic(), error)


class Asking:
    """Asks for a synchronous client, each server on a thread of its own.

    Args:
        book: The servers.
        service_name: The model that the client wants.
        ask: Makes a call: of an address, a method's path, a message and a deadline it makes the reply.
    """

    def __init__(self, book: AddressBook, service_name: str, ask: Callable[[str, str, bytes, Deadline], bytes]) -> None:
        self._asked = _Asked(book, service_name)
        self._ask = ask
        self._alone = threading.Lock()

    def ask_all(self, deadline: Deadline, *, for_call: bool = False) -> None:
        """Ask those of whom too little is known; raises only where the client is closed, or the deadline over."""
        if not self._asked.addresses(for_call):
            return
        # Who comes meanwhile waits for what the first one hears, instead of asking the same.
        if not self._alone.acquire(timeout=self._asked.patience(deadline).remaining_s()):
            return
        try:
            if addresses := self._asked.addresses(for_call):
                self._hear(addresses, self._asked.patience(deadline))
        finally:
            self._alone.release()

    def _hear(self, addresses: Sequence[str], until: Deadline) -> None:
        with ThreadPoolExecutor(len(addresses), "splitlearn-asking") as pool:
            for heard in [pool.submit(copy_context().run, self._hear_one, address, until) for address in addresses]:
                heard.result()

    def _hear_one(self, address: str, until: Deadline) -> None:
        try:
            self._asked.note(address, self._ask(address, protocol.HEALTH_CHECK, _QUESTION, until))
        except CommError as error:
            self._asked.note_failure(address, error)


class AsyncAsking:
    """`Asking`, for an asyncio client."""

    def __init__(
        self, book: AddressBook, service_name: str, ask: Callable[[str, str, bytes, Deadline], Awaitable[bytes]]
    ) -> None:
        self._asked = _Asked(book, service_name)
        self._ask = ask
        self._alone = asyncio.Lock()

    async def ask_all(self, deadline: Deadline, *, for_call: bool = False) -> None:
        """As `Asking.ask_all`."""
        if not self._asked.addresses(for_call):
            return
        try:
            async with asyncio.timeout(self._asked.patience(deadline).remaining_s()):
                await self._alone.acquire()
        except TimeoutError:
            return
        try:
            if addresses := self._asked.addresses(for_call):
                until = self._asked.patience(deadline)
                async with asyncio.TaskGroup() as group:
                    for address in addresses:
                        group.create_task(self._hear_one(address, until))
        except* CommError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._alone.release()

    async def _hear_one(self, address: str, until: Deadline) -> None:
        try:
            self._asked.note(address, await self._ask(address, protocol.HEALTH_CHECK, _QUESTION, until))
        except CommError as error:
            self._asked.note_failure(address, error)
