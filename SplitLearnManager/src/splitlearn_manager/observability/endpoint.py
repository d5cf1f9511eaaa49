"""The page that Prometheus fetches: `/metrics`, over HTTP, on this machine."""

from __future__ import annotations

import threading
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from splitlearn_comm import AddressInUseError

HOST = "127.0.0.1"
"""There is no TLS and nobody is asked who he is, so only this machine can connect."""


class MetricsEndpoint:
    """Gives out the metrics of a registry from `start` to `stop`, from a thread of its own.

    Args:
        registry: What to give out.
        port: 0 for any that is free.
    """

    def __init__(self, registry: CollectorRegistry, port: int) -> None:
        self._registry = registry
        self._port = port
        self._running: tuple[WSGIServer, threading.Thread] | None = None

    @property
    def url(self) -> str:
        """Where the page is; known once it was started."""
        return f"http://{HOST}:{self._port}/metrics"

    def start(self) -> None:
        """Listen. Raises `AddressInUseError` if the port is taken."""
        try:
            self._running = start_http_server(self._port, HOST, self._registry)
        except OSError as error:
            raise AddressInUseError(
                f"cannot listen on {HOST}:{self._port} for metrics: {error}; stop what listens there or choose "
                f"another metrics_port (0 takes any that is free)"
            ) from error
        self._port = self._running[0].server_port

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
