"""What `ServerProcess` runs: `python -m splitlearn_comm.testing.serve module:name port config`."""

from __future__ import annotations

import importlib
import json
import sys

import torch

from splitlearn_comm.server import GRPCComputeServer, GRPCServerConfig


def main(service: str, port: str, config: str) -> None:
    """Serve until a signal comes; the first line printed is the address."""
    torch.set_num_threads(1)
    module, name = service.split(":")
    made = getattr(importlib.import_module(module), name)()
    server = GRPCComputeServer(made, port=int(port), config=GRPCServerConfig(**json.loads(config)))
    server.start(on_ready=lambda: print(server.address, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
