"""Several `splitlearn serve`, each a process of its own, that are ended by a signal and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import SystemRandom
from typing import Self

import psutil

from splitlearn_comm.testing import eventually
from tests.support.programs import LISTENING, ROOT

START_TIMEOUT_S = 120.0


def quiet_port() -> int:
    """A port that is free and stays so: the system gives none of these to who asks for any."""
    for port in SystemRandom().sample(range(20000, 30000), 100):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise RuntimeError("none of a hundred ports is free")


class ServeProcesses:
    """Starts the processes; they share one import of torch, by being forked.

    Args:
        directory: where their output goes.
        environment: of all of them, beside this process' own.
        arguments: of all servers, as `splitlearn serve` takes them.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str], arguments: Sequence[str] = ()) -> None:
        self._directory = directory
        self._arguments = arguments
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-m", "tests.support.serve_forks"]
        self._forks = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **pipes)  # type: ignore[call-overload]
        self._processes: dict[int, int] = {}

    def start(self, port: int) -> None:
        """Begin `splitlearn serve --port PORT`; `wait_for` waits until it listens."""
        self._output(port).unlink(missing_ok=True)
        asked = [str(self._output(port)), "serve", *self._arguments, "--port", str(port)]
        self._processes[port] = self._ask(asked)

    def wait_for(self, port: int) -> None:
        """Wait until it listens."""
        process = psutil.Process(self._processes[port])

        def is_listening() -> bool:
            assert process.status() != psutil.STATUS_ZOMBIE, self.output(port)
            return f"{LISTENING}127.0.0.1:{port}\n" in self.output(port)

        eventually(is_listening, timeout_s=START_TIMEOUT_S)

    def end(self, port: int) -> int:
        """Send the process SIGTERM; return the status that it ends with."""
        process = self._processes.pop(port)
        os.kill(process, signal.SIGTERM)
        return self._ask(process)

    def pid(self, port: int) -> int:
        """The process."""
        return self._processes[port]

    def wait_killed(self, port: int) -> None:
        """Wait until somebody has killed the process with SIGKILL."""
        self.wait_ended(self._processes[port])
        assert self._ask(self._processes.pop(port)) == -signal.SIGKILL

    def begin_loop(self, output: Path, *arguments: str) -> int:
        """Begin `training_program` in a process of its own; return that."""
        return self._ask([str(output), "loop", *arguments])

    def status_of(self, process: int) -> int:
        """Wait until a process of `begin_loop` has ended; return its status, the negative of a signal's number."""
        self.wait_ended(process)
        return self._ask(process)

    @staticmethod
    def wait_ended(process: int) -> None:
        """Wait until a process has ended; its status stays to be asked for."""
        eventually(lambda: psutil.Process(process).status() == psutil.STATUS_ZOMBIE, timeout_s=START_TIMEOUT_S)

    def output(self, port: int) -> str:
        """What the process has said."""
        return self._output(port).read_text() if self._output(port).exists() else ""

    def _output(self, port: int) -> Path:
        return self._directory / f"serve-{port}.txt"

    def _ask(self, line: object) -> int:
        self._forks.stdin.write(json.dumps(line) + "\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forks.stdin.close()
        self._forks.wait()
        self._forks.stdout.close()
