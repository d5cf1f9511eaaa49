"""The pages for operators and their tools, over HTTP: `/metrics`, `/healthz`, `/readyz`."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from splitlearn_comm import AddressInUseError

HOST = "127.0.0.1"
"""There is no TLS and nobody is asked who he is, so only this machine can connect unless somebody says otherwise."""
IDLE_TIMEOUT_S = 30.0
"""A connection that says nothing for so long is closed."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsEndpoint:
    """Gives out the pages from `start` to `stop`, from threads of its own.

    Args:
        registry: The metrics.
        port: 0 for any that is free.
        host: Name or address to listen at; see `check_metrics_binding`.
        is_ready: Whether sessions and calls are taken now; asked in a thread of the endpoint.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        port: int,
        host: str = HOST,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._app = _pages(registry, is_ready)
        self._port = port
        self._host = host
        self._running: tuple[WSGIServer, threading.Thread] | None = None

    @property
    def url(self) -> str:
        """Where the metrics are; known once it was started."""
        shown = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{shown}:{self._port}/metrics"

    def start(self) -> None:
        """Listen. Raises `AddressInUseError` if the port is taken, or the host is no address of this machine."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        kind = type("_Server", (_Server,), {"address_family": family})
        try:
            server = kind((self._host, self._port), _Handler)
        except OSError as error:
            raise AddressInUseError(
                f"cannot listen on {self._host}:{self._port} for metrics: {error}; stop what listens there or choose "
                f"another metrics_port (0 takes any that is free)"
            ) from error
        server.set_app(self._app)
        thread = threading.Thread(target=server.serve_forever, name="splitlearn-metrics", daemon=True)
        thread.start()
        self._running = (server, thread)
        self._port = server.server_port

    def stop(self) -> None:
        """Listen no more. May be called twice."""
        running, self._running = self._running, None
        if running is not None:
            server, thread = running
            server.shutdown()
            server.server_close()
            thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def check_metrics_binding(host: str, is_open: bool) -> None:
    """Refuse to give the pages to other machines by mistake.

    Args:
        host: Name or address to listen at.
        is_open: Whether anybody who can connect may read them.

    Raises:
        ValueError: Other machines could connect there, and nobody said that they may.
    """
    if is_open or _is_loopback(host):
        return
    raise ValueError(
        f"metrics_host={host!r} can be reached from other machines, and the pages have neither TLS nor passwords: "
        f"listen on 127.0.0.1, or say open_metrics=True if everybody who can connect may read the metrics"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pages(registry: CollectorRegistry, is_ready: Callable[[], bool]) -> App:
    metrics: App = make_wsgi_app(registry)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _say(start_response, "405 Method Not Allowed", "only GET and HEAD are answered here")
        match environ["PATH_INFO"]:
            case "/metrics":
                return metrics(environ, start_response)
            case "/healthz":
                return _say(start_response, "200 OK", "alive")
            case "/readyz" if is_ready():
                return _say(start_response, "200 OK", "ready")
            case "/readyz":
                return _say(start_response, "503 Service Unavailable", "not ready: starting, draining, or no model")
        return _say(start_response, "404 Not Found", "there are /metrics, /healthz and /readyz")

    return serve


def _say(start_response: Callable[..., Any], status: str, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    """A slow reader must not keep a server that stops."""


class _Handler(WSGIRequestHandler):
    timeout = IDLE_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line every few seconds is no news."""
