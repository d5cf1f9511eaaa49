"""What is served at one address: one host, or several by their names."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

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
    """A hold on a service, for as long as a session is open or somebody waits for a call.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


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
            ServiceNotFoundError: There is none of that name and version, or none is named and there are several.
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


class NamedHosts(HostDirectory):
    """Several hosts, each under its name, from the start to the end of the server.

    A client that names none gets the one with the fingerprint it expects, or the only one.

    Args:
        hosts: By name.
    """

    def __init__(self, hosts: Mapping[str, SessionHost]) -> None:
        if not hosts or not all(name.isascii() and name for name in hosts):
            raise ValueError(f"expected at least one host, each with a name in ASCII, came {list(hosts)}")
        self._hosts = dict(hosts)

    async def setup(self) -> None:
        """Set all hosts up; if one fails those that were are torn down again."""
        done: list[SessionHost] = []
        try:
            for host in self._hosts.values():
                await host.setup()
                done.append(host)
        except BaseException:
            await _tear_down(done)
            raise

    async def teardown(self) -> None:
        """Tear all hosts down."""
        await _tear_down(list(self._hosts.values()))

    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(self._hosts)

    def lease(self, wanted: Wanted) -> Lease:
        """The host of that name; they have no versions."""
        if not wanted.name:
            return Lease(self._hosts[only(self._fitting(wanted.fingerprint))])
        if wanted.name not in self._hosts or wanted.version:
            raise not_found(wanted, self._hosts)
        return Lease(self._hosts[wanted.name])

    def _fitting(self, fingerprint: str) -> list[str]:
        fitting = [name for name, host in self._hosts.items() if host.get_info().fingerprint == fingerprint]
        return fitting if fingerprint and fitting else list(self._hosts)


def only(names: Iterable[str]) -> str:
    """The name, if there is one alone. Raises `ServiceNotFoundError` otherwise."""
    found = sorted(names)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ServiceNotFoundError("nothing is served here now; ask whoever runs the server, or try again later")
    raise ServiceNotFoundError(
        f"several models are served here, and none was named: expected model= to be one of {', '.join(found)}"
    )


def not_found(wanted: Wanted, names: Iterable[str]) -> ServiceNotFoundError:
    """The error for a service that is not there."""
    there = ", ".join(sorted(names)) or "nothing"
    return ServiceNotFoundError(f"{wanted} is not served here; there is {there}: name one of these with model=")


async def _tear_down(hosts: list[SessionHost]) -> None:
    results = await asyncio.gather(*(host.teardown() for host in hosts), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
