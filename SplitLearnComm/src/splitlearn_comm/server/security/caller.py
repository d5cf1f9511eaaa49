"""Who makes the call that is being served."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from splitlearn_comm.directory import Wanted
from splitlearn_comm.logs import ids
from splitlearn_comm.server.security.accounts import ClientAccount
from splitlearn_comm.server.security.tokens import Acquaintance

_GOOD_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """The client of one call, and the call's name."""

    account: ClientAccount
    """What the client has of this server."""
    request_id: str
    """Names the call in the log."""
    wanted: Wanted = field(default_factory=Wanted)
    """The service it is for."""
    acquaintance: Acquaintance | None = None
    """Tells whether a client that came with a token is known still; None if that cannot change."""

    def log_ids(self) -> Mapping[str, str | int]:
        """What a line of the log about this call tells."""
        return ids(client=self.account.name, request=self.request_id, model=self.wanted.name)


CALLER: ContextVar[Caller] = ContextVar("splitlearn_caller")
"""Set for as long as a call is served, in its task and in those it starts."""


def request_id_from(sent: str | bytes | None) -> str:
    """The request id a client sent, if it is one that may stand in a log line; else a new one."""
    if isinstance(sent, str) and _GOOD_ID.fullmatch(sent):
        return sent
    return new_request_id()


def new_request_id() -> str:
    """A name for one call: 16 hexadecimal digits."""
    return uuid.uuid4().hex[:16]


def current_request_id() -> str:
    """The name of the call that is being served; a new one outside of any."""
    caller = CALLER.get(None)
    return caller.request_id if caller else new_request_id()
