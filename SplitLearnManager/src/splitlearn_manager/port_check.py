"""Whether a server could listen at an address, found out before a model is loaded for it."""

import os
import socket

from splitlearn_comm import AddressInUseError


def check_port_is_free(host: str, port: int) -> None:
    """Bind to the address for a moment, as the server will.

    Of a name with several addresses (`localhost`: IPv6 and IPv4) one is enough, as it is for gRPC. The port may still
    be taken by the time the server starts; that is the same error then.

    Raises:
        AddressInUseError: (of splitlearn_comm) something listens there, or the host is no address of this machine.
    """
    if host.startswith("unix:"):
        return
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        addresses = []
    if not any(_can_bind(family, address) for family, _, _, _, address in addresses):
        shown = f"[{host}]" if ":" in host else host
        raise AddressInUseError(
            f"cannot listen on {shown}:{port}: port {port} is in use, or {host!r} is no address of this machine; "
            "stop what listens there or choose another (port=0 takes any that is free)"
        )


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name == "posix":
                # As gRPC does: connections of a server that just ended may linger. (Elsewhere it would share the port.)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True
