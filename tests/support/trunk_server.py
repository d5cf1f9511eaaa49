"""What `TrunkProcess` runs: starts and stops `ManagedServer`s as lines of JSON on standard input say, until it closes.

Every line is answered by one line of JSON on standard output: what was asked for, or `{"error": "..."}`.
"""

import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from splitlearn_manager import ManagedServer, ServerConfig


class Servers:
    """The servers of this process by their address."""

    def __init__(self) -> None:
        self._running: dict[str, ManagedServer] = {}

    def start(self, model: str | None, config: dict[str, Any], dtype: str | None, **options: Any) -> str:
        """Start a server on a free port and return its address."""
        if dtype is not None:
            options["dtype"] = getattr(torch, dtype)
        server = ManagedServer(model, config=ServerConfig(**config), **{"port": 0, **options})
        server.start(block=False)
        self._running[server.address] = server
        return server.address

    def statistics(self, address: str) -> dict[str, int]:
        """Return what a server has counted."""
        return asdict(self._running[address].statistics())

    def stop(self, address: str) -> None:
        """Stop a server."""
        self._running.pop(address).stop()

    def stop_all(self) -> None:
        """Stop every server."""
        for address in list(self._running):
            self.stop(address)


def answer(servers: Servers, line: str) -> dict[str, Any]:
    """Do what one line says."""
    request = json.loads(line)
    try:
        return {"result": getattr(servers, request.pop("do"))(**request)}
    except Exception as error:  # the test that asked decides what an error means
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serve until standard input closes."""
    torch.set_num_threads(1)
    servers = Servers()
    for line in sys.stdin:
        print(json.dumps(answer(servers, line)), flush=True)
    servers.stop_all()


if __name__ == "__main__":
    main()
