"""Serve the middle layers of a model. In another terminal run quickstart_client.py.

python examples/quickstart_server.py            the built-in model at port 50051
python examples/quickstart_server.py gpt2 0     any model of the Hugging Face hub, at a free port
"""

import logging
import sys

from splitlearn_manager.quickstart import ManagedServer


def main(model: str = "builtin", port: str = "50051") -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    server = ManagedServer(model, port=int(port))
    # Serves until Ctrl-C; then running steps finish, and the process ends with status 0.
    server.start(on_ready=lambda: print(f"listening at {server.address}", flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
