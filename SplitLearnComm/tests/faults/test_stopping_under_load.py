"""Servers that stop while clients come back to them, on a machine that has too much to do."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from splitlearn_comm import AddressBook, GRPCComputeClient, GRPCComputeServer, GRPCServerConfig
from splitlearn_comm.testing import RunningSumHost

NUM_AT_ONCE, NUM_EACH = 8, 40
HASTY = GRPCServerConfig(drain_timeout_s=0.1)
"""The server is gone while the client that it has called is on its way back."""


def stop_once() -> None:
    first = GRPCComputeServer(RunningSumHost(), port=0, config=HASTY)
    first.start(block=False)
    with GRPCComputeServer(RunningSumHost(), port=0) as second:
        book = AddressBook([first.address, second.address], in_order=True)
        with GRPCComputeClient(book) as client, client.session() as session:
            session.step(torch.ones(1, 3, 4))
            first.stop()
            assert torch.equal(session.step(torch.ones(1, 1, 4)), torch.full((1, 1, 4), 4.0))


@pytest.mark.faults
def test_a_client_on_its_way_back_to_a_server_that_ends_does_not_hang() -> None:
    """gRPC's own retries could leave a read that nothing ended, not even its cancellation."""

    def stop_many(_: int) -> None:
        for _ in range(NUM_EACH):
            stop_once()

    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        tries = [pool.submit(stop_many, number) for number in range(NUM_AT_ONCE)]
        assert not wait(tries, timeout=120).not_done
        for each in tries:
            each.result()
