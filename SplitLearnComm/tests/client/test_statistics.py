"""A client counts the bytes of its messages."""

import torch

from splitlearn_comm import GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.testing import Identity


def test_calls_and_steps_are_counted_with_their_bytes() -> None:
    tensor = torch.zeros(1, 10, 768)
    with GRPCComputeServer(Identity(), port=0) as server, GRPCComputeClient(server.address) as client:
        client.compute(tensor)
        after_call = client.statistics()
        with client.session() as session:
            session.step(tensor)
            session.step(tensor)
        after_session = client.statistics()
    assert after_call.messages_sent == 1
    assert tensor.nbytes <= after_call.bytes_sent <= tensor.nbytes + 100
    # Open, two steps, close.
    assert after_session.messages_sent == 5
    assert 3 * tensor.nbytes <= after_session.bytes_received <= 3 * tensor.nbytes + 500
