"""A server on the running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import splitlearn_comm.protocol as protocol
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.directory import HostDirectory
from splitlearn_comm.observer import Observer
from splitlearn_comm.samples import SampleSource
from splitlearn_comm.server.binding import bind
from splitlearn_comm.server.calls import CallService
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.described import pool_of
from splitlearn_comm.server.handlers import ServerInterceptor
from splitlearn_comm.server.security.accounts import Accounts
from splitlearn_comm.server.security.guard import HEALTH_PREFIX, REFLECTION_PREFIX, Guard
from splitlearn_comm.server.security.identity import Identity
from splitlearn_comm.server.security.tokens import TokenBook
from splitlearn_comm.server.served import Services
from splitlearn_comm.server.sessions import SessionService
from splitlearn_comm.server.statistics import ServerStatistics
from splitlearn_comm.server.statistics_stream import StatisticsService
from splitlearn_comm.server.watching import Watch


class AioServer:
    """Serves from `start` to `stop`, on the loop that calls them.

    Args:
        directory: What computes.
        interface: Name or address to listen on.
        port: 0 for any that is free.
        config: Limits.
        observer: Is told of calls, steps and sessions.
        interceptors: Stand behind the door, the first of them first.
        samples: Tells the figures that `WatchStatistics` gives out.
        further_services: Services that interceptors answer, for reflection.
    """

    def __init__(
        self,
        directory: HostDirectory,
        interface: str,
        port: int,
        config: GRPCServerConfig,
        observer: Observer | None = None,
        interceptors: Sequence[ServerInterceptor] = (),
        samples: SampleSource | None = None,
        further_services: Sequence[ServiceDescriptor] = (),
    ) -> None:
        self._directory = directory
        self._interface = interface
        self._port = port
        self._config = config
        self._observer = observer
        self._interceptors = interceptors
        self._further_services = further_services
        self._statistics = ServerStatistics()
        self._watched = StatisticsService(samples)
        self._noting: set[asyncio.Future[None]] = set()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]

    def statistics(self) -> ServerStatistics:
        """A copy of the counts."""
        return replace(self._statistics, sessions_open=self._sessions.num_open())

    def is_ready(self) -> bool:
        """Whether calls are taken, and something is served; asked on the loop, once it was started."""
        return self._calls.is_serving and bool(self._directory.names())

    async def start(self) -> int:
        """Take the port, set the host up, then take calls; returns the port.

        Raises:
            AddressInUseError: If something listens there already. The host is not set up then.
            OSError: A certificate, key or token file cannot be read.
            ValueError: What is in one is of no use.
        """
        self._server = grpc.aio.server(interceptors=self._all_interceptors(), options=self._config.channel_options())
        port = self._bind()
        try:
            await self._start_hosts()
        except BaseException:
            # gRPC gives a port back only when a server that was started is stopped.
            await self._server.start()
            await self._server.stop(None)
            raise
        await self._server.start()
        self._directory.subscribe(self._note_health)
        self._reaper = asyncio.create_task(self._sessions.expire_for_ever())
        await self._set_serving(True)
        return port

    async def _start_hosts(self) -> None:
        await self._directory.setup()
        try:
            self._add_services()
        except BaseException:
            await self._directory.teardown()
            raise

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let running ones finish for so long, close all sessions, tear the host down."""
        await self._set_serving(False)
        self._reaper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reaper
        self._sessions.drain()
        self._watched.stop()
        began_s = time.monotonic()
        ceasing = self._calls.wait_until_they_cease(min(grace_s, self._config.drain_idle_timeout_s))
        await asyncio.gather(self._sessions.wait_for_moves(grace_s), ceasing)
        await self._server.stop(max(0.0, grace_s - (time.monotonic() - began_s)))
        await self._sessions.stop()
        await self._directory.teardown()

    async def _set_serving(self, is_serving: bool) -> None:
        self._calls.is_serving = is_serving
        for name in {"", protocol.SERVICE, *self._directory.names()}:
            await self._health.set(name, _status(is_serving))

    def _note_health(self, name: str, is_serving: bool) -> None:
        task = asyncio.ensure_future(self._health.set(name, _status(is_serving and self._calls.is_serving)))
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    def _bind(self) -> int:
        tls = self._config.tls
        if tls is None:
            return bind(self._interface, self._port, self._server.add_insecure_port)
        credentials = tls.credentials()
        return bind(self._interface, self._port, lambda address: self._server.add_secure_port(address, credentials))

    def _all_interceptors(self) -> list[ServerInterceptor]:
        watch = [Watch(self._observer)] if self._observer is not None else []
        return [*watch, self._guard(), *self._interceptors]

    def _guard(self) -> Guard:
        config = self._config
        tokens = None if config.tokens is None else TokenBook(config.tokens)
        has_certificates = config.tls is not None and config.tls.client_ca is not None
        open_prefixes = (HEALTH_PREFIX, REFLECTION_PREFIX) if config.open_reflection else (HEALTH_PREFIX,)
        return Guard(Identity(tokens, has_certificates), Accounts(config.client_limits), open_prefixes)

    def _add_services(self) -> None:
        self._directory.names()  # a host that cannot say what it is does not begin to serve
        parts = (Services(self._directory, self._config), self._config, self._statistics)
        self._sessions = SessionService(*parts, self._observer)
        self._calls = CallService(*parts, self._sessions.use_adapter)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if importlib.util.find_spec("grpc_reflection"):
            from grpc_reflection.v1alpha import reflection, reflection_pb2

            files = (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
            own = [service for file in files for service in file.services_by_name.values()]
            services = [*own, *self._further_services]
            names = [service.full_name for service in services]
            reflection.enable_server_reflection(names, self._server, pool_of(services))

    def _handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        # No deserialisers: a message that cannot be parsed is then refused like any other wrong one.
        unary: Any = grpc.unary_unary_rpc_method_handler
        watched: Any = grpc.unary_stream_rpc_method_handler
        methods = {
            protocol.COMPUTE: unary(self._calls.compute),
            protocol.HEALTH_CHECK: unary(self._calls.health_check),
            protocol.GET_SERVICE_INFO: unary(self._calls.get_service_info),
            protocol.WATCH_STATISTICS: watched(self._watched.watch),
            protocol.SESSION: grpc.stream_stream_rpc_method_handler(self._sessions.serve),
        }
        named = {path.rsplit("/", 1)[1]: handler for path, handler in methods.items()}
        return grpc.method_handlers_generic_handler(protocol.SERVICE, named)


def _status(is_serving: bool) -> Any:
    return health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
