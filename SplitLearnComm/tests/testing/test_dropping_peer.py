import socket

import pytest
import torch

from splitlearn_comm import DeadlineExceededError, GRPCComputeClient
from splitlearn_comm.testing import DroppingPeer, eventually


def test_it_accepts_and_never_answers() -> None:
    with DroppingPeer() as peer:
        host, _, port = peer.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(b"hello")
            eventually(lambda: (peer.num_connections, peer.bytes_dropped) == (1, 5))
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=20)


def test_a_client_gives_it_up_in_time() -> None:
    with DroppingPeer() as peer, GRPCComputeClient(peer.address, connect_timeout_s=0.3, timeout_s=0.3) as client:
        for attempt in (client.health, client.session, lambda: client.compute(torch.ones(1))):
            with pytest.raises(DeadlineExceededError):
                attempt()
        assert peer.num_connections >= 1
