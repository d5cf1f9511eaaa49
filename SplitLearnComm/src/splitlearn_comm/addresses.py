"""Addresses, as gRPC writes them: which stay on this machine, which are Unix sockets."""

from __future__ import annotations

import ipaddress
import re

UNIX = "unix:"
_SCHEME = re.compile(r"(?:ipv4:|ipv6:|dns:(?://[^/]*/)?|passthrough:(?://[^/]*/)?)")
_PORT = re.compile(r":\d+$")


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
