"""A server and its client in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from splitlearn_comm.client import GRPCComputeClient
from splitlearn_comm.function import ComputeFunction
from splitlearn_comm.host import SessionHost
from splitlearn_comm.server import GRPCComputeServer, GRPCServerConfig


@contextmanager
def loopback(
    service: ComputeFunction | SessionHost, *, config: GRPCServerConfig | None = None
) -> Iterator[GRPCComputeClient]:
    """Serve something on a free port of this machine and give a client of it, for as long as the `with` block lasts.

    Args:
        service: What computes.
        config: Limits of the server.
    """
    with GRPCComputeServer(service, port=0, config=config) as server, GRPCComputeClient(server.address) as client:
        yield client
