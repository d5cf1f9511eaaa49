"""A service as one session or call has it: the host, and what arrives for it is held against."""

from __future__ import annotations

from dataclasses import replace

from splitlearn_comm.codec import usable_names
from splitlearn_comm.directory import HostDirectory, Lease
from splitlearn_comm.messages import ServiceInfo
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.security.caller import CALLER
from splitlearn_comm.validation import Validator


class Served:
    """A service that was leased.

    Args:
        lease: The hold on it.
        config: Of the server.
    """

    def __init__(self, lease: Lease, config: GRPCServerConfig) -> None:
        info = lease.host.get_info()
        self.host = lease.host
        self.release = lease.release
        self.validator = Validator(info, refuse_nonfinite=config.refuse_nonfinite)
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
            served = Served(lease, self._config)
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
