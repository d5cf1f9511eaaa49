"""The sessions that are open: their ledgers, and the services that were leased for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from splitlearn_comm.contained import awaited
from splitlearn_comm.errors import SessionNotFoundError
from splitlearn_comm.logs import ids
from splitlearn_comm.observer import Observer
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.faults import logger, told_without_contents
from splitlearn_comm.server.security.accounts import ClientAccount
from splitlearn_comm.server.served import Served, Services
from splitlearn_comm.server.statistics import ServerStatistics
from splitlearn_comm.session import Ledger, SessionTable


class OpenSessions:
    """Opens, finds and ends sessions, in the book and at the host alike.

    Args:
        services: Where hosts are leased.
        config: Limits.
        statistics: Where to count.
        observer: Is told of each that opens and ends.
    """

    def __init__(
        self, services: Services, config: GRPCServerConfig, statistics: ServerStatistics, observer: Observer
    ) -> None:
        self._services = services
        self._statistics = statistics
        self._observer = observer
        self._table = SessionTable(
            max_sessions=config.max_sessions,
            idle_timeout_s=config.idle_session_timeout_s,
            detached_timeout_s=config.detached_session_timeout_s,
        )
        self._clock = asyncio.get_running_loop().time
        self._served: dict[str, Served] = {}
        self._at_host: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return repr(self._table)

    def has(self, session_id: str) -> bool:
        """Whether the session is open."""
        return self._table.has(session_id)

    def is_new(self, session_id: str) -> bool:
        """Whether the session is open and has done nothing yet."""
        return self._table.has(session_id) and self._table.ledger(session_id).step_id == 0

    def served(self, session_id: str) -> Served:
        """What serves an open session."""
        return self._served[session_id]

    def use(self, session_id: str, attachment: int) -> Ledger:
        """The ledger of a session, for a message over the stream of this attachment; raises as `SessionTable.use`."""
        return self._table.use(session_id, attachment, self._clock())

    def begin_training(self, session_id: str, adapter: str, *, has_weights: bool) -> None:
        """Note that a session trains; arguments as in `SessionTable.begin_training`."""
        self._table.begin_training(session_id, adapter, has_weights=has_weights)

    def is_training(self, session_id: str) -> bool:
        """Whether the session is open and trains weights."""
        return self._table.is_training(session_id)

    def idle_training_s(self, session_id: str) -> float | None:
        """Seconds since anybody used what a session trains; None where it trains nothing."""
        return self._table.idle_training_s(session_id, self._clock())

    def give_up(self, session_id: str) -> None:
        """Note that its client was waited for, when the server stopped, for long enough."""
        self._table.give_up(session_id)

    def has_training_between_streams(self, patience_s: float) -> bool:
        """Whether the stream of a session that trains broke less than so long ago, and it was not taken up again."""
        return self._table.has_training_between_streams(self._clock(), patience_s)

    def use_adapter(self, client: str, adapter: str) -> None:
        """Note that a call of a client computes with an adapter: a session that trains it is in use; empty for none."""
        self._table.use_adapter(client, adapter, self._clock())

    async def open(self, session_id: str, account: ClientAccount, fingerprint: str, adapter: str = "") -> int:
        """Open a session on the service that the call names; returns the number of its attachment.

        Args:
            session_id: Its name.
            account: Whose it is.
            fingerprint: What the service's must be; empty not to compare.
            adapter: Name of an adapter of the client; empty for none.

        Raises:
            CommError: It cannot be; nothing is left of it then.
        """
        # The table first: it refuses a name that is taken, and nobody becomes the owner of another's session.
        attachment = self._table.open(session_id, self._clock(), client=account.name, adapter=adapter)
        try:
            account.open_session(session_id, self._table.has)
            served = await self._open_at_host(session_id, account.name, fingerprint, adapter)
        except BaseException:
            if self._table.attachment(session_id) == attachment:
                self._table.close(session_id, "it could not be opened")
            raise
        finally:
            self.wake(session_id)
        if self._table.attachment(session_id) != attachment:
            await self._close_at_host(session_id, served)
            raise SessionNotFoundError(f"session {session_id} was closed while it was opened; open another")
        self._served[session_id] = served
        served.load.sessions += 1
        self.wake(session_id)
        self._statistics.sessions_opened += 1
        self._tell(self._observer.on_session_opened)
        return attachment

    def attachment(self, session_id: str) -> int | None:
        """The number of the stream it was attached to last; None if it is not open."""
        return self._table.attachment(session_id)

    def attach(self, session_id: str, account: ClientAccount) -> int:
        """Attach a session to another stream; raises `SessionNotFoundError` where there is none of this client."""
        account.check_owns(session_id)
        return self._table.resume(session_id, self._clock())

    async def settled(self, session_id: str, fingerprint: str) -> Ledger:
        """The ledger of a session, once nothing of it runs any more; raises if it is gone by then, or another's."""
        # A step that came over the old stream may still be running, or the host may still make room.
        while self._table.ledger(session_id).is_running or session_id not in self._served:
            await self._woken(session_id)
        ledger = self._table.ledger(session_id)
        self._served[session_id].validator.check_fingerprint(fingerprint)
        return ledger

    def detach(self, session_id: str, attachment: int) -> None:
        """Note that the stream of this attachment ended."""
        self._table.detach(session_id, attachment, self._clock())

    def wake(self, session_id: str) -> None:
        """Let whoever waits for a session look again."""
        if self._waiting and (event := self._waiting.pop(session_id, None)):
            event.set()

    async def end(self, session_id: str, how: str, reason: str = "it was closed by its client") -> None:
        """Close a session, if it is open.

        Args:
            session_id: Its name.
            how: In a word, for the observer.
            reason: In a sentence, for a client that asks for it later.
        """
        if self._table.close(session_id, reason):
            await self._ended(session_id, how)

    def expire(self) -> None:
        """Close the sessions whose time is over; the hosts free them in their own time."""
        for session_id in self._table.expire(self._clock()):
            self._statistics.sessions_expired += 1
            logger.info("session %s expired", session_id, extra=ids(session=session_id))
            task = asyncio.create_task(self._ended(session_id, "expired"))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def end_all(self) -> None:
        """Close every session: the server stops."""
        for session_id in self._table.close_all():
            await self._ended(session_id, "stopped")
        if self._closing:
            await asyncio.wait(self._closing)

    async def _ended(self, session_id: str, how: str) -> None:
        # In the same breath as the table: what is opened under this name from here on is another session.
        served = self._served.pop(session_id, None)
        self.wake(session_id)
        self._tell(self._observer.on_session_closed, how)
        if served is not None:
            served.load.sessions -= 1
            await self._close_at_host(session_id, served)

    async def _open_at_host(self, session_id: str, client: str, fingerprint: str, adapter: str) -> Served:
        async with self._alone_at_host(session_id):
            served = self._services.lease(fingerprint)
            try:
                served.validator.check_adapter(adapter)
                await awaited(served.host.open_session, session_id, client, adapter)
            except BaseException:
                served.release()
                raise
            return served

    async def _close_at_host(self, session_id: str, served: Served) -> None:
        try:
            async with self._alone_at_host(session_id):
                await awaited(served.host.close_session, session_id)
        except Exception as error:
            told = told_without_contents(error)
            logger.error("the host failed to close session %s\n%s", session_id, told, extra=ids(session=session_id))
        finally:
            served.release()

    @contextlib.asynccontextmanager
    async def _alone_at_host(self, session_id: str) -> AsyncIterator[None]:
        """One at a time opens or closes what the host knows by this name."""
        while session_id in self._at_host:
            await self._woken(session_id)
        self._at_host.add(session_id)
        try:
            yield
        finally:
            self._at_host.discard(session_id)
            self.wake(session_id)

    async def _woken(self, session_id: str) -> None:
        await self._waiting.setdefault(session_id, asyncio.Event()).wait()

    def _tell(self, tell: Callable[..., None], *what: str) -> None:
        try:
            tell(*what)
        except Exception:
            logger.exception("an observer failed")
