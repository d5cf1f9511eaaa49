"""A client in one line."""

from __future__ import annotations

from collections.abc import Sequence

from splitlearn_comm.client.client import GRPCComputeClient
from splitlearn_comm.errors import CommError, ServerUnavailableError


class Client(GRPCComputeClient):
    """A `GRPCComputeClient` of one server, or of the first of several that takes calls.

    Args:
        address: `host:port`, or a list of them. One address is not tried before the first call; of a list each is asked
            for its health, in order, and the client stays with the one that it finds.
        connect_timeout_s: How long each of a list may take to answer.

    Raises:
        ServerUnavailableError: None of a list takes calls.
        ValueError: The list is empty.
    """

    def __init__(self, address: str | Sequence[str], *, connect_timeout_s: float = 20.0) -> None:
        if not isinstance(address, str):
            address = first_serving(address, connect_timeout_s)
        super().__init__(address, connect_timeout_s=connect_timeout_s)


def first_serving(addresses: Sequence[str], timeout_s: float) -> str:
    """The first of the addresses whose server says that it takes calls; raises as `Client` does."""
    if not addresses:
        raise ValueError("no address was given: expected at least one host:port")
    failures = []
    for address in addresses:
        with GRPCComputeClient(address, connect_timeout_s=timeout_s) as client:
            try:
                if client.health():
                    return address
                failures.append(f"{address} takes no calls now")
            except CommError as error:
                failures.append(str(error))
    raise ServerUnavailableError(f"none of {len(addresses)} servers takes calls: " + "; ".join(failures))
