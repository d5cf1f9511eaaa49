"""What is served at one address: one host, or several by their names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from splitlearn_comm.errors import ServiceNotFoundError
from splitlearn_comm.host import SessionHost

Listener = Callable[[str, bool], None]
"""Is told the name of a service, and whether it takes new sessions and calls from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which service a call or session is for."""

    name: str = ""
    """Its name; empty where the client leaves it open."""
    version: str = ""
    """Its version; empty for the newest."""
    fingerprint: str = ""
    """What it must have; empty not to compare."""

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name


class Lease:
    """A hold on a service for the time of one session or call: it is not taken away meanwhile.

    Args:
        host: What computes.
        on_release: Called once, when it is given back.
    """

    def __init__(self, host: SessionHost, on_release: Callable[[], None] = lambda: None) -> None:
        self.host = host
        self._on_release: Callable[[], None] | None = on_release

    def release(self) -> None:
        """Give it back. May be called twice."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


class HostDirectory(ABC):
    """The services behind one address. All methods are called on the server's event loop and must not block it."""

    async def setup(self) -> None:
        """Called once before the first request."""
        return

    async def teardown(self) -> None:
        """Called once after the last request, when all sessions are closed."""
        return

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The services that take sessions and calls now."""

    @abstractmethod
    def lease(self, wanted: Wanted) -> Lease:
        """A service, for one session or call.

        Raises:
            ServiceNotFoundError: There is none of that name and version, or the client names none and there are several.
            ServerUnavailableError: There is one, and it takes nothing now.
        """

    def subscribe(self, listener: Listener) -> None:
        """Tell a listener, from now on, of each service that comes, goes, or changes its readiness."""
        return


class SingleHost(HostDirectory):
    """One host, whatever a client calls it by, as long as it is not another name.

    Args:
        host: What computes.
    """

    def __init__(self, host: SessionHost) -> None:
        self.host = host

    async def setup(self) -> None:
        """Set the host up."""
        await self.host.setup()

    async def teardown(self) -> None:
        """Tear the host down."""
        await self.host.teardown()

    def names(self) -> tuple[str, ...]:
        """The host's name."""
        return (self.host.get_info().name,)

    def lease(self, wanted: Wanted) -> Lease:
        """The host."""
        name = self.host.get_info().name
        if wanted.name not in ("", name) or wanted.version:
            raise ServiceNotFoundError(f"{wanted} is not served here; there is {name!r}, of one version")
        return Lease(self.host)
