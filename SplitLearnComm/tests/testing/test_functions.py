import time

import pytest
import torch

from splitlearn_comm import RemoteInternalError
from splitlearn_comm.testing import FaultyFunction, Identity, SlowFunction, loopback

TOKEN = torch.ones(1, 1, 4)


def test_loopback_serves_until_the_block_ends() -> None:
    with loopback(Identity()) as client:
        assert torch.equal(client.compute(TOKEN), TOKEN)
        address = client.address
    with loopback(Identity()) as client:
        assert client.address != address or client.health()


def test_a_slow_function_takes_its_time() -> None:
    with loopback(SlowFunction(0.05)) as client:
        start_s = time.monotonic()
        assert torch.equal(client.compute(TOKEN), TOKEN)
        assert time.monotonic() - start_s >= 0.05


def test_a_faulty_function_fails_when_it_is_told_to() -> None:
    function = FaultyFunction(2, 4)
    with loopback(function) as client:
        for call in range(1, 6):
            if call in (2, 4):
                with pytest.raises(RemoteInternalError):
                    client.compute(TOKEN)
            else:
                assert torch.equal(client.compute(TOKEN), TOKEN)
    assert function.num_calls == 5
