"""Addresses, as gRPC writes them: which stay on this machine, which are Unix sockets."""

from __future__ import annotations

import ipaddress
import re

UNIX = "unix:"
MAX_PORT = 65535
_SCHEMES = ("ipv4:", "ipv6:", "dns:///", "dns:")
"""Of gRPC's own way to write addresses; behind each stands host:port."""
_HOST = re.compile(r"\[[0-9A-Fa-f:.%\w]+\]|[^\s\[\]:/@,]+")
_SCHEME = re.compile(r"(?:ipv4:|ipv6:|dns:(?://[^/]*/)?|passthrough:(?://[^/]*/)?)")
_PORT = re.compile(r":\d+$")


def check_port(port: object) -> None:
    """Raise `TypeError` for what is no whole number, `ValueError` for one that is no port: gRPC would take it modulo
    65536."""
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be a whole number from 0 to {MAX_PORT}, came {port!r}")
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"port must be 0 to {MAX_PORT}, came {port}")


def check_interface(host: object) -> None:
    """Raise `ValueError` for what a server cannot listen on.

    Args:
        host: Name or address, without a port, or `unix:/path`.
    """
    if not isinstance(host, str) or any(character.isspace() for character in host):
        raise ValueError(f"host: expected a name, an IP address or unix:/path, came {host!r}")
    name, colon, port = host.rpartition(":")
    if colon and ":" not in name and not is_unix(host):
        raise ValueError(f"the port is in the host, came host={host!r}: say host={name!r}, port={port or '...'}")
    if host.startswith("["):
        raise ValueError(f"host: expected an IPv6 address without brackets or port, came {host!r}")


def check_address(address: object) -> None:
    """Raise `ValueError` for what a client cannot call: expected is `host:port` or `unix:/path`.

    gRPC takes a few more, and so does this: `dns:host:port`, `dns:///host:port`, `ipv4:...:port`, `ipv6:[...]:port`,
    `unix-abstract:...`.
    """
    reason = _reason_against(address)
    if reason is not None:
        raise ValueError(f"expected host:port or unix:/path, came {address!r}{reason}")


def _reason_against(address: object) -> str | None:
    """What is wrong with an address, to be said behind it; None if nothing is."""
    if not isinstance(address, str) or not address.strip():
        return ""
    if any(character.isspace() for character in address):
        return ": there is a blank in it"
    for scheme in (UNIX, "unix-abstract:"):
        if address.startswith(scheme):
            return None if len(address) > len(scheme) else ": the path is missing"
    scheme = next((one for one in _SCHEMES if address.startswith(one)), "")
    if "://" in address.removeprefix(scheme):
        return ": leave out what stands before the host"
    each = address.removeprefix(scheme).split(",") if scheme.startswith("ip") else [address.removeprefix(scheme)]
    return next((reason for one in each if (reason := _reason_against_plain(one)) is not None), None)


def _reason_against_plain(address: str) -> str | None:
    host, colon, port = address.rpartition(":")
    if not colon:
        return ": it has no port, as in localhost:50051"
    if ":" in host and not host.startswith("["):
        return ": an IPv6 address stands in brackets, as in [::1]:50051"
    if not _HOST.fullmatch(host):
        return ": there is no host before the port" if not host else ""
    if not re.fullmatch(r"-?[0-9]+", port):
        return ": the port is no number"
    return None if 0 <= int(port) <= MAX_PORT else f": port must be 0 to {MAX_PORT}, came {port}"


def is_unix(address: str) -> bool:
    """Whether it is a Unix socket's: `unix:/path`, `unix:path` or `unix:///path`."""
    return address.startswith(UNIX)


def unix_path(address: str) -> str:
    """The path in a Unix socket's address. An abstract socket (`unix-abstract:`) has none and is not taken for one."""
    path = address.removeprefix(UNIX)
    return "/" + path.lstrip("/") if path.startswith("//") else path


def is_loopback(host: str) -> bool:
    """Whether a host's name or IP address is this machine's own; names but `localhost` are not looked up."""
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def stays_here(address: str) -> bool:
    """Whether what is sent to an address (`host:port`, or of a Unix socket) never leaves this machine."""
    if address.startswith((UNIX, "unix-abstract:")):
        return True
    plain = _SCHEME.sub("", address, count=1) if _SCHEME.match(address) else address
    # Bare IPv6 addresses have no port: gRPC wants [::1]:port.
    return is_loopback(plain) or is_loopback(_PORT.sub("", plain))


def joined(interface: str, port: int) -> str:
    """Interface and port as one address; a Unix socket has no port, and IPv6 addresses need brackets."""
    if is_unix(interface):
        return interface
    return f"[{interface}]:{port}" if ":" in interface else f"{interface}:{port}"
