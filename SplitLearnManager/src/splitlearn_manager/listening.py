"""What every server of models has: its place, its metrics, its control surface, its start and its end."""

import threading
from collections.abc import Callable
from typing import Self

import splitlearn_core
from splitlearn_comm import GRPCComputeServer, HostDirectory, Observer, ServerStatistics, SessionHost, Together
from splitlearn_comm.addresses import check_interface, check_port
from splitlearn_comm.server import GRPCServerConfig, check_binding
from splitlearn_manager.config import ServerConfig
from splitlearn_manager.control.beside import BesideService
from splitlearn_manager.control.door import OperatorDoor
from splitlearn_manager.control.inference import InferenceService
from splitlearn_manager.control.models import ControlledModels
from splitlearn_manager.control.surface import ControlSurface
from splitlearn_manager.observability import MetricsEndpoint, ServerMetrics, check_metrics_binding
from splitlearn_manager.port_check import check_port_is_free


class ListeningServer:
    """Listens for clients and operators, from `start` to `stop`.

    Args:
        service: what computes.
        models: the same, as operators know it.
        port: TCP port; 0 picks a free one.
        host: address to listen at, or `unix:/path`.
        config: all other settings.
        observer: is told of calls, steps and sessions.
    """

    def __init__(
        self,
        service: SessionHost | HostDirectory,
        models: ControlledModels,
        *,
        port: int,
        host: str,
        config: ServerConfig,
        observer: Observer | None,
    ) -> None:
        observers = [] if observer is None else [observer]
        self._endpoint: MetricsEndpoint | None = None
        metrics: ServerMetrics | None = None
        if config.metrics_port is not None:
            metrics = ServerMetrics(lambda: models.rows() if self._server.is_running else ())
            self._endpoint = MetricsEndpoint(
                metrics.registry,
                config.metrics_port,
                config.metrics_host,
                lambda: metrics.ask_loop(self._server.is_ready),
            )
            observers.append(metrics.observer)
        self._ending: threading.Thread | None = None
        inference = InferenceService(models, self._is_serving, splitlearn_core.__version__)
        beside = BesideService(models, self._is_serving, self._begin_to_end)
        methods = (*inference.methods(), *beside.methods())
        self._server = GRPCComputeServer(
            service,
            port=port,
            host=host,
            config=comm_config(config),
            observer=Together(*observers) if observers else None,
            samples=metrics.samples if metrics else None,
            interceptors=[ControlSurface(methods, OperatorDoor(config))],
            further_services=list({method.service.full_name: method.service for method in methods}.values()),
        )

    @property
    def address(self) -> str:
        """Where the server listens, `"host:port"`; known once it was started."""
        return self._server.address

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus finds the metrics, known once the server was started; None where there are none."""
        return self._endpoint.url if self._endpoint else None

    def statistics(self) -> ServerStatistics:
        """Return what was counted so far: calls, steps, sessions, bytes."""
        return self._server.statistics()

    def start(self, block: bool = True, on_ready: Callable[[], object] | None = None) -> None:
        """Listen and serve.

        Args:
            block: serve until SIGINT or SIGTERM, or until an operator drains the server, then let steps in flight
                finish and return; otherwise return at once.
            on_ready: called once the server listens.

        Raises:
            AddressInUseError: (of splitlearn_comm) the port is in use by now.
        """
        if self._endpoint and not self._server.is_running:
            self._endpoint.start()
        try:
            self._server.start(block=block, on_ready=on_ready)
        finally:
            if block or not self._server.is_running:
                self._finish()

    def stop(self) -> None:
        """Let steps in flight finish within the grace time, then stop. May be called twice."""
        self._server.stop()
        self._finish()

    def __enter__(self) -> Self:
        self.start(block=False)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _is_serving(self) -> bool:
        return self._server.is_running

    def _begin_to_end(self, grace_s: float | None) -> None:
        """Stop the server without waiting for it: called on its own event loop."""
        if self._ending is None:
            self._ending = threading.Thread(target=self._server.stop, kwargs={"grace_s": grace_s}, name="drain")
            self._ending.start()

    def _finish(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.join()
        if self._endpoint:
            self._endpoint.stop()


def check_places(host: str, port: int, config: ServerConfig) -> None:
    """Find out, before anything is loaded, whether a server may and can listen.

    Raises:
        TypeError: the port is no number.
        ValueError: the port is none; other machines could connect and nobody is asked who he is, or could read the
            metrics and nobody said that they may; or a file is of no use.
        OSError: a file cannot be read.
        AddressInUseError: (of splitlearn_comm) a port is in use.
    """
    check_interface(host)
    check_port(port)
    wire = comm_config(config)
    check_binding(host, wire)
    wire.check_files()
    check_port_is_free(host, port)
    if config.metrics_port is not None:
        check_metrics_binding(config.metrics_host, config.open_metrics)
        check_port_is_free(config.metrics_host, config.metrics_port)


def comm_config(config: ServerConfig) -> GRPCServerConfig:
    """Pick what the wire needs to know."""
    return GRPCServerConfig(
        max_sessions=config.max_sessions,
        idle_session_timeout_s=config.idle_session_timeout_s,
        detached_session_timeout_s=config.detached_session_timeout_s,
        max_message_bytes=config.max_message_bytes,
        drain_timeout_s=config.drain_timeout_s,
        drain_idle_timeout_s=config.drain_idle_timeout_s,
        refuse_nonfinite=config.refuse_nonfinite,
        tls=config.tls,
        tokens=config.tokens,
        client_limits=config.client_limits,
        allow_insecure=config.allow_insecure,
        open_reflection=config.open_reflection,
    )
