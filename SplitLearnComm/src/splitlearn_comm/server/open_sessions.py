"""The sessions that are open: their ledgers, and the services that were leased for them."""

from __future__ import annotations

import asyncio

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
        self._opening: set[str] = set()
        self._waiting: dict[str, asyncio.Event] = {}

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

    async def open(self, session_id: str, account: ClientAccount, fingerprint: str) -> int:
        """Open a session on the service that the call names; returns the number of its attachment.

        Raises:
            CommError: It cannot be; nothing is left of it then.
        """
        # The table first: it refuses a name that is taken, and nobody becomes the owner of another's session.
        attachment = self._table.open(session_id, self._clock())
        self._opening.add(session_id)
        try:
            self._served[session_id] = served = self._services.lease(fingerprint)
            account.open_session(session_id, self._table.has)
            await served.host.open_session(session_id, account.name)
        except BaseException:
            self._table.close(session_id, "it could not be opened")
            self._release(session_id)
            raise
        finally:
            self._opening.discard(session_id)
            self.wake(session_id)
        self._statistics.sessions_opened += 1
        self._observer.on_session_opened()
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
        while self._table.ledger(session_id).is_running or session_id in self._opening:
            await self._waiting.setdefault(session_id, asyncio.Event()).wait()
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
            self._observer.on_session_closed(how)
            await self._close_at_host(session_id)

    async def expire(self) -> None:
        """Close the sessions whose time is over."""
        for session_id in self._table.expire(self._clock()):
            self._statistics.sessions_expired += 1
            self._observer.on_session_closed("expired")
            logger.info("session %s expired", session_id, extra=ids(session=session_id))
            await self._close_at_host(session_id)

    async def end_all(self) -> None:
        """Close every session: the server stops."""
        for session_id in self._table.close_all():
            self._observer.on_session_closed("stopped")
            await self._close_at_host(session_id)

    async def _close_at_host(self, session_id: str) -> None:
        served = self._served.get(session_id)
        if served is None:
            return  # it was being opened, and is let go there
        try:
            await served.host.close_session(session_id)
        except Exception as error:
            told = told_without_contents(error)
            logger.error("the host failed to close session %s\n%s", session_id, told, extra=ids(session=session_id))
        finally:
            self._release(session_id)

    def _release(self, session_id: str) -> None:
        if served := self._served.pop(session_id, None):
            served.release()
