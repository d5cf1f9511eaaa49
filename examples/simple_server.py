"""Serve a function of a tensor, and nothing of models. In another terminal run simple_client.py.

python examples/simple_server.py            at port 50051 of this machine
python examples/simple_server.py 0          at a free port
"""

import sys

import torch

from splitlearn_comm import ComputeFunction, GRPCComputeServer, ServiceInfo


class Softmax(ComputeFunction):
    """Probabilities along the last dimension: [..., N] in, [..., N] out."""

    def get_info(self) -> ServiceInfo:
        return ServiceInfo(name="softmax", extra={"output": "probabilities along the last dimension"})

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        # What goes wrong in here reaches the client as one fixed sentence; the log of the server has the rest.
        return torch.softmax(tensor, dim=-1)


def main(port: str = "50051") -> None:
    server = GRPCComputeServer(Softmax(), port=int(port))
    # Serves until Ctrl-C; then running calls finish, and the process ends with status 0.
    server.start(on_ready=lambda: print(f"listening at {server.address}", flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
