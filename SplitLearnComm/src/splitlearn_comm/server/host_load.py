"""How busy one host of a server is."""

from __future__ import annotations

import asyncio

from splitlearn_comm.contained import awaited
from splitlearn_comm.host import SessionHost
from splitlearn_comm.messages import CacheUse, Load
from splitlearn_comm.server.faults import logger

PATIENCE_S = 0.2
"""How long a host is waited for that does not say at once what its caches take; then what it said last counts."""


class HostLoad:
    """Counts what a host is doing; only what its caches take is asked of it."""

    def __init__(self) -> None:
        self.steps = 0
        """Steps and calls that it was handed and has not answered."""
        self.sessions = 0
        """Sessions open at it."""
        self._cache = CacheUse()

    def __repr__(self) -> str:
        return f"<{self.steps} steps, {self.sessions} sessions, {self._cache.num_bytes} bytes>"

    def known(self) -> Load:
        """What is known without asking."""
        return Load(
            steps=self.steps,
            sessions=self.sessions,
            kv_bytes=self._cache.num_bytes,
            kv_limit_bytes=self._cache.limit_bytes,
        )

    async def asked(self, host: SessionHost) -> Load:
        """What is known after the host, this one, was asked for a moment."""
        try:
            self._cache = await asyncio.wait_for(awaited(host.cache_use), PATIENCE_S)
        except TimeoutError:
            pass
        except Exception:
            # To say how busy it is, is not what a host is there for.
            logger.debug("%r did not say what its caches take", host, exc_info=True)
        return self.known()
