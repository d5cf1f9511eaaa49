"""A trunk server in a process of its own, for commands that show both sides of the cut."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from splitlearn.errors import ServerEndedError

READY = "listening at "
STOP_TIMEOUT_S = 30.0


@contextmanager
def child_server(model: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """Run `splitlearn serve` on a free port until the block ends.

    Args:
        model: hub id, local directory, or `"builtin"`.
        arguments: further options of `splitlearn serve`.

    Yields:
        The server's address `"host:port"` and its process id.

    Raises:
        ServerEndedError: the server ended before it listened; its own message is on standard error.
    """
    command = [sys.executable, "-m", "splitlearn", "serve", model, "--port", "0", "--log-level", "warning", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            raise ServerEndedError(f"the server ended with status {process.wait()} before it listened")
        yield line.removeprefix(READY).strip(), process.pid
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
