from collections.abc import Iterator

import pytest
import torch

from splitlearn_comm import GRPCComputeServer
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import RunningSumHost, ServerProcess

torch.set_num_threads(1)


@pytest.fixture
def sum_server() -> Iterator[GRPCComputeServer]:
    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        yield server


@pytest.fixture
def client(sum_server: GRPCComputeServer) -> Iterator[Client]:
    with Client(sum_server.address) as client:
        yield client


@pytest.fixture(scope="session")
def sums() -> Iterator[str]:
    """The address of a running sum in another process."""
    with ServerProcess("splitlearn_comm.testing:RunningSumHost") as process:
        yield process.address
