"""Faults in the middle of large tensors, which travel in chunks: nothing half arrived is ever used.

One of each is tried in each run of the suite, the rest in `make faults`. Streams repeat no chunk
alone: messages are lost, late or cut off here, and not doubled.
"""

import pytest
import torch

from splitlearn_comm import GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.client import FixedDelay
from splitlearn_comm.framing.chunks import CHUNK_BYTES
from splitlearn_comm.testing import Cut, Delay, Direction, Drop, FaultyRelay, RunningSumHost
from splitlearn_comm.testing.faults import Fault

pytestmark = pytest.mark.slow

NUM_STEPS, NUM_TOKENS = 3, 5
HIDDEN_SIZE = CHUNK_BYTES // 8
MESSAGES_OF_A_STEP = 4
"""Two chunks and a half of data make three, and the message they belong to follows."""
NUM_MESSAGES = 1 + NUM_STEPS * MESSAGES_OF_A_STEP + 1
ALWAYS = 6
"""The second step's second chunk."""


@pytest.mark.parametrize(
    "boundary",
    [pytest.param(index, marks=[] if index == ALWAYS else [pytest.mark.faults]) for index in range(NUM_MESSAGES)],
)
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("fault", [Drop(), Cut(), Delay(0.05)], ids=["drop", "cut", "delay"])
def test_a_fault_between_chunks_changes_nothing(direction: Direction, boundary: int, fault: Fault) -> None:
    hidden = torch.arange(NUM_STEPS * NUM_TOKENS * HIDDEN_SIZE).remainder(7).float().view(1, -1, HIDDEN_SIZE)
    host = RunningSumHost(hidden_size=HIDDEN_SIZE)
    with (
        GRPCComputeServer(host, port=0) as server,
        FaultyRelay(server.address, {(direction, boundary): fault}) as relay,
        GRPCComputeClient(relay.address, retry=FixedDelay(0.02, max_attempts=50)) as client,
    ):
        with client.session() as session:
            outputs = [session.step(step) for step in hidden.chunk(NUM_STEPS, dim=1)]
            assert session.position == NUM_STEPS * NUM_TOKENS
        assert torch.equal(torch.cat(outputs, dim=1), hidden.cumsum(1))
        made = relay.statistics()
        assert made.dropped + made.cut + made.delayed == 1
        assert made.requests >= NUM_MESSAGES - 1
        assert server.statistics().steps == NUM_STEPS
