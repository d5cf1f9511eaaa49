"""Where a server listens: what it may listen on, and how it takes the place."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from splitlearn_comm.addresses import is_loopback, is_unix, joined, unix_path
from splitlearn_comm.errors import AddressInUseError
from splitlearn_comm.server.config import GRPCServerConfig

_OTHERS = stat.S_IXUSR | stat.S_IRWXG | stat.S_IRWXO


def check_binding(interface: str, config: GRPCServerConfig) -> None:
    """Refuse to stand open on a network by mistake. Call it before anything is loaded.

    Args:
        interface: Name or IP address to listen on, or `unix:/path`.
        config: The server's.

    Raises:
        ValueError: Other machines could connect there, and the server would be in the clear or take calls of anybody.
    """
    if is_unix(interface) or is_loopback(interface) or config.allow_insecure or config.is_closed_to_strangers:
        return
    if config.tls is None:
        lacks = "no TLS" if config.tokens is not None else "neither TLS nor tokens"
    else:
        lacks = "TLS but neither tokens nor client_ca"
    raise ValueError(
        f"{interface} can be reached from other machines, and the server has {lacks}: give it "
        f"tls=ServerTLS(certificate=..., key=...) and tokens=TokenFile(...) (or a client_ca), listen on 127.0.0.1 or a "
        f"unix: path, or say allow_insecure=True if everybody who can connect may use the model and read what is sent"
    )


def bind(interface: str, port: int, add_port: Callable[[str], int]) -> int:
    """Take the place; returns the port.

    Args:
        interface: Name or address to listen on, or `unix:/path`.
        port: 0 for any that is free; of no meaning for a Unix socket.
        add_port: Takes an address, as gRPC writes it.

    Raises:
        AddressInUseError: Something is there already, or the place is none.
    """
    address = joined(interface, port)
    try:
        if is_unix(interface):
            with _place_for_socket(unix_path(interface)):
                add_port(address)
            return port
        return add_port(address)
    except RuntimeError as error:
        what = (
            "its directory is not there or not writable"
            if is_unix(interface)
            else (f"port {port} is in use, or {interface!r} is no address of this machine")
        )
        raise AddressInUseError(
            f"cannot listen on {address}: {what}; stop what listens there or choose another"
            + ("" if is_unix(interface) else " (port=0 takes any that is free)"),
        ) from error


@contextmanager
def _place_for_socket(path: str) -> Iterator[None]:
    """Make sure that no server is displaced (gRPC would do so), and that only this user can connect."""
    if _is_listened_on(path):
        raise AddressInUseError(
            f"cannot listen on unix:{path}: a server is listening there, or it is a file that is no socket; "
            f"stop the server or choose another path"
        )
    with suppress(FileNotFoundError):
        os.unlink(path)
    # The mode comes from the mask: with a chmod afterwards there would be a moment in which anybody may connect.
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def _is_listened_on(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return True
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Nobody there: what a server left that was killed.
        return probe.connect_ex(path) != errno.ECONNREFUSED
