"""A stand-in for the Hugging Face hub: a real HTTP server on loopback that serves directories under model ids.

It speaks as much of the hub's API as huggingface_hub and transformers use to load a model: files with their digests,
ranges and redirects, descriptions of a model, listings of its tree, and the hub's own errors. It keeps a log of what
was sent, and can break a connection in the middle of a file.

huggingface_hub reads HF_ENDPOINT when it is imported, so clients run in a process of their own: `Hub.run_python`,
or any command started with `Hub.environment`.
"""

import os
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

from tests.support.hub_answers import Answer, Asked, answer, answer_renamed, take_apart
from tests.support.hub_repository import CHUNK_BYTES, Repository, read_repository


@dataclass(kw_only=True)
class Request:
    """One request in the log."""

    method: str
    path: str
    """As asked for, with the query."""
    repo_id: str
    """The model that was asked for; empty where the path names none."""
    file: str
    """The file that was asked for; empty where the path names none."""
    status: int
    num_bytes: int = 0
    """Bytes of the body that were sent."""


class Hub:
    """The server with what it serves. `with Hub(home) as hub:` starts and stops it."""

    def __init__(self, home: Path) -> None:
        """`home` is where clients keep their cache (HF_HOME); it need not exist."""
        self.home = home
        self._revisions: dict[str, dict[str, Repository]] = {}
        self._renamed: dict[str, str] = {}
        self._cuts: dict[str, list[int]] = {}
        self._requests: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="hub", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_endpoint(self) -> str:
        """Where large files are redirected to; by another host name, as clients tell the hub from its storage."""
        return f"http://localhost:{self.port}/storage"

    def publish(self, repo_id: str, directory: Path, *, branch: str = "main") -> str:
        """Serve the files below `directory` as the model `repo_id`; returns the commit.

        Again: another commit, to which the branch then points. Those before stay, so leave their directories alone.
        """
        repository = read_repository(repo_id, directory)
        with self._lock:
            self._revisions.setdefault(repo_id, {}).update({branch: repository, repository.commit: repository})
        return repository.commit

    def rename(self, old_id: str, new_id: str) -> None:
        """Redirect one id to another, as the hub itself does for `gpt2`."""
        with self._lock:
            self._renamed[old_id] = new_id

    def cut_once(self, file: str, *, after_bytes: int) -> None:
        """Break the connection of the next download of `file`, any model's, after so many bytes."""
        with self._lock:
            self._cuts.setdefault(file, []).append(after_bytes)

    @property
    def requests(self) -> list[Request]:
        """The log, oldest first."""
        with self._lock:
            return list(self._requests)

    def clear_requests(self) -> None:
        """Begin the log anew."""
        with self._lock:
            self._requests.clear()

    def downloaded(self, repo_id: str) -> dict[str, int]:
        """Bytes sent of each file of a model, summed over requests; a file that was only looked at is not in it."""
        num_bytes: Counter[str] = Counter()
        for request in self.requests:
            if request.repo_id == repo_id and request.file and request.status in (200, 206) and request.num_bytes:
                num_bytes[request.file] += request.num_bytes
        return dict(num_bytes)

    def environment(self, *, offline: bool = False) -> dict[str, str]:
        """This process's environment, made to use this hub; all other settings of Hugging Face's are taken out."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def run_python(
        self, code: str, *args: str, offline: bool = False, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `code` with this hub in a process of its own; `args` are its `sys.argv[1:]`. Check the returncode."""
        command = [sys.executable, "-c", code, *args]
        environment = self.environment(offline=offline)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)

    def answer(self, method: str, asked: Asked) -> tuple[Answer, Request]:
        """Decide the answer to a request and put it into the log (the handler's side of the hub)."""
        with self._lock:
            new_id = self._renamed.get(asked.repo_id)
            found = self._revisions.get(asked.repo_id, {})
            reply = answer_renamed(asked, new_id) if new_id else answer(asked, found, self.storage_endpoint)
            request = Request(
                method=method, path=asked.path, repo_id=asked.repo_id, file=asked.file, status=reply.status
            )
            self._requests.append(request)
        return reply, request

    def take_cut(self, file: str) -> int | None:
        """Take the next cut that is due for `file` (the handler's side of the hub)."""
        with self._lock:
            cuts = self._cuts.get(file)
            return cuts.pop(0) if cuts else None


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may go away in the middle
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60.0  # seconds that a connection may lie idle

    def do_GET(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        asked = take_apart(self.path, form, self.headers.get("Range") or "")
        reply, request = self.server.hub.answer(self.command, asked)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(reply.num_bytes))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(reply, request)

    do_HEAD = do_GET
    do_POST = do_GET

    def _send_body(self, reply: Answer, request: Request) -> None:
        if reply.file is None:
            self._write(reply.content, request)
            return
        cut_after = self.server.hub.take_cut(reply.file.name)
        left = reply.num_bytes if cut_after is None else min(cut_after, reply.num_bytes)
        self.close_connection = self.close_connection or left < reply.num_bytes
        with reply.file.path.open("rb") as stream:
            stream.seek(reply.first_byte)
            while left > 0 and (chunk := stream.read(min(left, CHUNK_BYTES))):
                self._write(chunk, request)
                left -= len(chunk)

    def _write(self, content: bytes, request: Request) -> None:
        # Counted first: a client that has the last byte may look into the log at once.
        request.num_bytes += len(content)
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: the hub keeps a log of its own."""
