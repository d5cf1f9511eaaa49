"""The server people start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from google.protobuf.descriptor import ServiceDescriptor

from splitlearn_comm.addresses import check_interface, check_port, is_unix, joined
from splitlearn_comm.checks import no_service
from splitlearn_comm.directory import HostDirectory, SingleHost
from splitlearn_comm.function import ComputeFunction
from splitlearn_comm.function_host import FunctionHost
from splitlearn_comm.host import SessionHost
from splitlearn_comm.observer import Observer
from splitlearn_comm.samples import SampleSource
from splitlearn_comm.server.aio import AioServer
from splitlearn_comm.server.asked import StopAsked, asking_on_signals
from splitlearn_comm.server.binding import check_binding
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.faults import logger
from splitlearn_comm.server.handlers import ServerInterceptor
from splitlearn_comm.server.loop import server_loop
from splitlearn_comm.server.statistics import ServerStatistics


class GRPCComputeServer:
    """Serves a function or a session host over gRPC.

    ::

        GRPCComputeServer(Double(), port=50051).start()        # serves until SIGINT or SIGTERM

        with GRPCComputeServer(Double(), port=0) as server:    # serves beside what follows
            print(server.address)

    Args:
        service: What computes: a function, a session host, or a directory of several hosts.
        port: 0 for any that is free.
        host: Name or address to listen on, or `unix:/path`; the default takes connections from this machine only.
        config: Limits, and who may call.
        observer: Is told of calls, steps and sessions; see `splitlearn_comm.observer`.
        interceptors: gRPC's own, of the asyncio kind; they see the calls that were let in, the first of them first.
        samples: Tells the figures that clients get from `watch_statistics`; None for none.
        further_services: Services that interceptors answer, for reflection to tell of them too.

    Raises:
        TypeError: That cannot be served.
        ValueError: The port is none, or is in the host. Or other machines could connect, and there is no TLS, or nobody
            is asked who he is; see `GRPCServerConfig.allow_insecure`.
    """

    def __init__(
        self,
        service: ComputeFunction | SessionHost | HostDirectory,
        *,
        port: int = 50051,
        host: str = "127.0.0.1",
        config: GRPCServerConfig | None = None,
        observer: Observer | None = None,
        interceptors: Sequence[ServerInterceptor] = (),
        samples: SampleSource | None = None,
        further_services: Sequence[ServiceDescriptor] = (),
    ) -> None:
        self._directory = _directory_of(service)
        self._served_by = type(service).__name__
        check_interface(host)
        check_port(port)
        self._interface = host
        self._port = port
        self._config = config or GRPCServerConfig()
        self._observer, self._interceptors = observer, tuple(interceptors)
        self._samples, self._further_services = samples, tuple(further_services)
        check_binding(host, self._config)
        self._running: AioServer | None = None
        self._last_statistics = ServerStatistics()
        self._stop_asked: StopAsked | None = None

    def __repr__(self) -> str:
        is_open = self._port == 0 and not is_unix(self._interface)
        where = f"any free port of {self._interface}" if is_open else self.address
        state = "serving" if self.is_running else "not serving"
        return f"<{type(self).__name__} of {self._served_by} at {where}, {state}>"

    @property
    def port(self) -> int:
        """The port listened on, or to be listened on; after `start` never 0."""
        return self._port

    @property
    def address(self) -> str:
        """Where clients on this machine find the server: `host:port`, or `unix:/path`.

        Of a server that listens everywhere (`host="0.0.0.0"`) it says that; clients elsewhere are given the name or
        address of the machine, and the port.

        Raises:
            RuntimeError: The port is to be any that is free, and the server was not started yet.
        """
        if self._port == 0 and not is_unix(self._interface):
            raise RuntimeError("with port=0 the address is known once the server was started: call start() first")
        return joined(self._interface, self._port)

    @property
    def is_running(self) -> bool:
        """Whether the server was started and not stopped."""
        return self._running is not None

    def is_ready(self) -> bool:
        """Whether sessions and calls are taken: the server was started, does not drain, and something is served.

        Asks the service for its names, which belong to the event loop of the server: ask there.
        """
        running = self._running
        return running is not None and running.is_ready()

    def statistics(self) -> ServerStatistics:
        """What was counted up to now; after `stop`, up to then."""
        running = self._running
        return running.statistics() if running else self._last_statistics

    def start(self, *, block: bool = True, on_ready: Callable[[], object] | None = None) -> None:
        """Set up the service and take calls.

        Args:
            block: Serve until `stop` is called from another thread or, in the main thread, SIGINT or SIGTERM comes;
                running calls are finished then. A signal during the set-up ends that. Otherwise return when calls are
                taken.
            on_ready: Called once calls are taken and signals are minded; useful when blocking.

        Raises:
            AddressInUseError: The port is in use.
            OSError, ValueError: A certificate, key or token file cannot be read, or is of no use.
            RuntimeError: The server is running already.
        """
        if self._running is not None:
            raise RuntimeError(f"this server is running already, on {self.address}")
        if block:
            self._serve_until_asked(on_ready)
            return
        server = self._new_server()
        self._begin(server, server_loop().run(server.start()))
        if on_ready is not None:
            on_ready()

    def stop(self, *, grace_s: float | None = None) -> None:
        """Take no new calls, finish the running ones, close the sessions, tear the service down. May be called twice.

        Args:
            grace_s: How long running calls may still take; by default the configuration's `drain_timeout_s`. After
                that their clients get an error; a function that still computes cannot be interrupted and is waited for.
        """
        server, self._running = self._running, None
        if self._stop_asked is not None:
            self._stop_asked.ask()
        if server is None:
            return
        server_loop().run(server.stop(self._config.drain_timeout_s if grace_s is None else grace_s))
        self._last_statistics = server.statistics()
        logger.info("stopped serving on %s", self.address)

    def __enter__(self) -> Self:
        self.start(block=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _new_server(self) -> AioServer:
        return AioServer(
            self._directory,
            self._interface,
            self._port,
            self._config,
            self._observer,
            self._interceptors,
            self._samples,
            self._further_services,
        )

    def _begin(self, server: AioServer, port: int) -> None:
        self._port, self._running = port, server
        logger.info("serving %s on %s", ", ".join(map(repr, self._directory.names())) or "nothing yet", self.address)

    def _serve_until_asked(self, on_ready: Callable[[], object] | None) -> None:
        loop, server = server_loop(), self._new_server()
        self._stop_asked = asked = StopAsked(loop.loop)
        try:
            with asking_on_signals(asked):
                port = loop.run(asked.unless_asked(server.start()))
                if port is None:
                    logger.info("asked to stop before anything was served")
                    return
                self._begin(server, port)
                if on_ready is not None:
                    on_ready()
                asked.wait()
        finally:
            self.stop()


def _directory_of(service: ComputeFunction | SessionHost | HostDirectory) -> HostDirectory:
    if isinstance(service, HostDirectory):
        return service
    if isinstance(service, SessionHost):
        return SingleHost(service)
    if isinstance(service, ComputeFunction):
        return SingleHost(FunctionHost(service))
    raise no_service(service, (ComputeFunction, SessionHost, HostDirectory))
