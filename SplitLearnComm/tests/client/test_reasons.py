"""Why a server ended a stream is told, whatever the client was doing with it."""

import asyncio
from collections.abc import Callable

import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    CommError,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    ResourceExhaustedError,
)
from splitlearn_comm.client import FixedDelay
from splitlearn_comm.server import ClientLimits
from splitlearn_comm.testing import Identity

LARGE = torch.ones(1, 1, 5_000_000)
"""Twenty chunks; the server takes three and ends the stream."""
ONCE = FixedDelay(0, max_attempts=1)


def error(address: str) -> CommError:
    with GRPCComputeClient(address, retry=ONCE) as client, client.session() as session:
        with pytest.raises(CommError) as raised:
            session.step(LARGE)
        return raised.value


def error_async(address: str) -> CommError:
    async def main() -> CommError:
        async with AsyncComputeClient(address, retry=ONCE) as client, client.session() as session:
            with pytest.raises(CommError) as raised:
                await session.step(LARGE)
            return raised.value

    return asyncio.run(main())


@pytest.mark.parametrize("error", [error, error_async], ids=["synchronous", "asyncio"])
def test_a_stream_that_ends_while_chunks_are_written_says_why(error: Callable[[str], CommError]) -> None:
    config = GRPCServerConfig(client_limits=ClientLimits(max_bytes_held=3_000_000))
    with GRPCComputeServer(Identity(), port=0, config=config) as server:
        for _ in range(10):
            raised = error(server.address)
            assert isinstance(raised, ResourceExhaustedError)
            assert "and one client may have 3000000" in str(raised)
            assert raised.retry_after_s == 1.0
            assert raised.request_id
