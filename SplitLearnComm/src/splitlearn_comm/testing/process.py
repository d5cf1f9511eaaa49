"""A server in a process of its own, so that it can be killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from types import TracebackType
from typing import Self

from splitlearn_comm.errors import ServerUnavailableError


class ServerProcess:
    """Runs a `GRPCComputeServer` in another process for as long as the `with` block lasts.

    Args:
        service: `module:name` of something that, called without arguments, gives what is to be served.
        config: Fields of its `GRPCServerConfig`.
        port: Where it listens; 0 for any port that is free.
    """

    def __init__(self, service: str, *, port: int = 0, **config: float) -> None:
        command = [sys.executable, "-m", "splitlearn_comm.testing.serve", service, str(port), json.dumps(config)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise ServerUnavailableError(f"the process serving {service} ended with {self._process.wait()}")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def interrupt(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; returns its exit status."""
        self._process.send_signal(number)
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
