"""Trunk servers in one other process, started on demand, so that a test session pays for one import of torch."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 30.0


class TrunkProcess:
    """A process that hosts trunks: real `ManagedServer`s on free ports, each with its own model.

    Args:
        environment: of the process; None for this one's.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "tests.support.trunk_server"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, **pipes, text=True, cwd=ROOT, env=environment)
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def start(self, model: str | Path | None = None, *, config: dict[str, Any] | None = None, **options: Any) -> str:
        """Start a server.

        Args:
            model: directory, hub id or `"builtin"`.
            config: fields of its `ServerConfig`.
            options: further arguments of `ManagedServer`; a dtype by its name.

        Returns:
            Its address `"host:port"`.

        Raises:
            RuntimeError: with what the server raised.
        """
        model = None if model is None else str(model)
        address: str = self._ask(do="start", model=model, config=config or {}, **{"dtype": None, **options})
        return address

    def statistics(self, address: str) -> dict[str, int]:
        """Return what a server has counted."""
        counts: dict[str, int] = self._ask(do="statistics", address=address)
        return counts

    def stop(self, address: str) -> None:
        """Stop a server."""
        self._ask(do="stop", address=address)

    @contextmanager
    def serving(self, model: str | Path | None = None, **options: Any) -> Iterator[str]:
        """Run a server for as long as the block lasts; arguments as in `start`."""
        address = self.start(model, **options)
        try:
            yield address
        finally:
            self.stop(address)

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Stop all servers and end the process. May be called twice, and when it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the trunk process ended with status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["result"]
