"""A client in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from splitlearn_comm.client.client import GRPCComputeClient
from splitlearn_comm.client.settings import ClientOptions
from splitlearn_comm.errors import CommError, ServerUnavailableError


class Client(GRPCComputeClient):
    """A `GRPCComputeClient` of one server, or of the first of several that takes calls.

    Args:
        address: `host:port`, or a list of them. One address is not tried before the first call; of a list each is asked
            for its health, in order, and the client stays with the one that it finds.
        **options: Timeouts, retries, limits, codecs: the fields of `ClientSettings`.

    Raises:
        ServerUnavailableError: None of a list takes calls.
        ValueError: The list is empty.
    """

    def __init__(self, address: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        if not isinstance(address, str):
            address = first_serving(address, options)
        super().__init__(address, **options)


def first_serving(addresses: Sequence[str], options: ClientOptions) -> str:
    """The first of the addresses whose server says that it takes calls; raises as `Client` does."""
    if not addresses:
        raise ValueError("no address was given: expected at least one host:port")
    failures = []
    for address in addresses:
        with GRPCComputeClient(address, **options) as client:
            try:
                if client.health():
                    return address
                failures.append(f"{address} takes no calls now")
            except CommError as error:
                failures.append(str(error))
    raise ServerUnavailableError(f"none of {len(addresses)} servers takes calls: " + "; ".join(failures))
