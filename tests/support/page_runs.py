"""A page of documentation, run: its server in one process, its other Python blocks in another."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import eventually
from tests.support.pages import blocks_of

ROOT = Path(__file__).resolve().parents[2]


def run_page(page: Path, directory: Path) -> str:
    """Run a page as it is written, but for the port; returns what its blocks printed, its server's aside.

    Args:
        page: The page; a block under `<!-- server -->` is ended by SIGINT, and then has to end with status 0.
        directory: Where its processes work, with the files that the page speaks of.
    """
    port = _free_port()
    with _server_of(page, directory, port), _process(page, "all", port, directory) as process:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return printed


@contextmanager
def _server_of(page: Path, directory: Path, port: int) -> Iterator[None]:
    lines = [str(block.line) for block in blocks_of(page) if block.mark == "server"]
    if not lines:
        yield
        return
    (line,) = lines
    with _process(page, line, port, directory) as process, Client(f"localhost:{port}") as client:

        def is_serving() -> bool:
            assert process.poll() is None, process.communicate()[1]
            try:
                return client.health()
            except ConnectionError:
                return False

        eventually(is_serving, timeout_s=60)
        yield
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors


@contextmanager
def _process(page: Path, line: str, port: int, directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.pages", str(page), line, str(port)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, cwd=directory, text=True, stdout=pipe, stderr=pipe) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _free_port() -> int:
    # Port 0 is no answer here: the page names one port in its server and in its clients.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
