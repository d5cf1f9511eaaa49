"""A client in one line."""

from __future__ import annotations

from splitlearn_comm.client.client import GRPCComputeClient


class Client(GRPCComputeClient):
    """`GRPCComputeClient` under a short name: `Client("localhost:50051")`, or a list of replicas."""
