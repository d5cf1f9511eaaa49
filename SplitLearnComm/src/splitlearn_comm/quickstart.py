"""A client in one line."""

from __future__ import annotations

from splitlearn_comm.client.client import GRPCComputeClient


class Client(GRPCComputeClient):
    """`GRPCComputeClient` under a short name: `Client("localhost:50051")`, or a list of replicas.

    Options, all by name: `timeout_s`, `connect_timeout_s`, `timeouts`, `retry`, `max_message_bytes`, `codec`, `max_kl`,
    `timings`, `replay_bytes`, `dead_after_s`, `model`, `model_version`, `tls`, `token`, `insecure`, `observer`,
    `interceptors`. `ClientSettings` says what each means, and its default.
    """
