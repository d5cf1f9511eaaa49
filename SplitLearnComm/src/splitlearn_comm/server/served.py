"""A service as one session or call has it: the host, and what arrives for it is held against."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import reduce
from operator import add

from splitlearn_comm.codec import usable_names
from splitlearn_comm.directory import HostDirectory, Lease, Wanted
from splitlearn_comm.errors import CommError
from splitlearn_comm.function_host import FunctionHost
from splitlearn_comm.host import SessionHost
from splitlearn_comm.messages import HealthReport, Load, ServiceInfo
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.host_load import HostLoad
from splitlearn_comm.server.security.caller import CALLER
from splitlearn_comm.validation import Validator


class Served:
    """A service that was leased.

    Args:
        lease: The hold on it.
        config: Of the server.
        load: How busy the host is, to be counted by who hands it something.
    """

    def __init__(self, lease: Lease, config: GRPCServerConfig, load: HostLoad) -> None:
        info = lease.host.get_info()
        self.host = lease.host
        self.load = load
        self.release = lease.release
        self.validator = Validator(
            info,
            refuse_nonfinite=config.refuse_nonfinite,
            accepted=lease.host.accepted if isinstance(lease.host, FunctionHost) else None,
        )
        self.is_stateful = info.stateful
        self.fingerprint = info.fingerprint or ""


class Services:
    """Leases services to the calls that want them.

    Args:
        directory: The services.
        config: Of the server.
    """

    def __init__(self, directory: HostDirectory, config: GRPCServerConfig) -> None:
        self._directory = directory
        self._config = config
        self._loads: dict[int, HostLoad] = {}

    def lease(self, fingerprint: str = "") -> Served:
        """The service that the call which is being served names; to be released.

        Raises:
            ServiceNotFoundError: There is none of that name, or the call names none and there are several.
            ServerUnavailableError: It takes nothing now.
            FingerprintMismatchError: It has another fingerprint.
        """
        named = CALLER.get().wanted
        lease = self._directory.lease(replace(named, fingerprint=fingerprint))
        try:
            served = Served(lease, self._config, self._load_of(lease.host))
            served.validator.check_fingerprint(fingerprint)
        except BaseException:
            lease.release()
            raise
        return served

    def info(self) -> ServiceInfo:
        """What the service that the call names says about itself, and the server about its limits."""
        lease = self._directory.lease(CALLER.get().wanted)
        try:
            info = lease.host.get_info()
        finally:
            lease.release()
        return replace(info, max_message_bytes=self._config.max_message_bytes, codecs=usable_names()[1:])

    async def health(self) -> HealthReport:
        """Whether what the call names takes calls, and how busy it is; where it names none, all there is."""
        models, wanted = self._directory.names(), CALLER.get().wanted
        loads = [await self._asked(one) for one in ([wanted] if wanted.name else [Wanted(name=n) for n in models])]
        known = [load for load in loads if load is not None]
        return HealthReport(
            serving=bool(known) or not wanted.name, models=models, load=reduce(add, known) if known else None
        )

    def serves_wanted(self) -> bool:
        """Whether what the call names takes calls; true where it names none."""
        wanted = CALLER.get().wanted
        if not wanted.name:
            return True
        try:
            self._directory.lease(wanted).release()
        except CommError:
            return False
        return True

    async def _asked(self, wanted: Wanted) -> Load | None:
        """How busy a service is; None where there is none of that name, or it takes nothing now."""
        try:
            lease = self._directory.lease(wanted)
        except CommError:
            return None
        with lease:
            return await self._load_of(lease.host).asked(lease.host)

    def _load_of(self, host: SessionHost) -> HostLoad:
        load = self._loads.get(id(host))
        if load is None:
            load = self._loads[id(host)] = HostLoad()
            weakref.finalize(host, self._loads.pop, id(host), None).atexit = False
        return load
