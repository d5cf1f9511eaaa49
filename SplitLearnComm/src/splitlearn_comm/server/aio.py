"""A server on the running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import splitlearn_comm.protocol as protocol
from splitlearn_comm.errors import AddressInUseError
from splitlearn_comm.host import SessionHost
from splitlearn_comm.server.calls import CallService
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.sessions import SessionService
from splitlearn_comm.server.statistics import ServerStatistics
from splitlearn_comm.validation import Validator


class AioServer:
    """Serves one host from `start` to `stop`, on the loop that calls them.

    Args:
        host: What computes.
        interface: Name or address to listen on.
        port: 0 for any that is free.
        config: Limits.
    """

    def __init__(self, host: SessionHost, interface: str, port: int, config: GRPCServerConfig) -> None:
        self._host = host
        self._interface = interface
        self._port = port
        self._config = config
        self._statistics = ServerStatistics()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]

    def statistics(self) -> ServerStatistics:
        """A copy of the counts."""
        return replace(self._statistics, sessions_open=self._sessions.num_open())

    async def start(self) -> int:
        """Take the port, set the host up, then take calls; returns the port.

        Raises:
            AddressInUseError: If something listens there already. The host is not set up then.
        """
        self._server = grpc.aio.server(options=self._config.channel_options())
        port = self._bind()
        try:
            await self._start_host()
        except BaseException:
            # gRPC gives a port back only when a server that was started is stopped.
            await self._server.start()
            await self._server.stop(None)
            raise
        await self._server.start()
        self._reaper = asyncio.create_task(self._sessions.expire_for_ever())
        await self._set_serving(True)
        return port

    async def _start_host(self) -> None:
        await self._host.setup()
        try:
            self._add_services()
        except BaseException:
            await self._host.teardown()
            raise

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let running ones finish for so long, close all sessions, tear the host down."""
        await self._set_serving(False)
        self._reaper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reaper
        self._sessions.drain()
        await self._server.stop(grace_s)
        await self._sessions.stop()
        await self._host.teardown()

    async def _set_serving(self, is_serving: bool) -> None:
        self._calls.is_serving = is_serving
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", protocol.SERVICE):
            await self._health.set(name, status)

    def _bind(self) -> int:
        address = joined(self._interface, self._port)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressInUseError(
                f"cannot listen on {address}: port {self._port} is in use, or {self._interface!r} is no address of "
                f"this machine; stop what listens there or choose another (port=0 takes any that is free)",
            ) from error
        return port

    def _add_services(self) -> None:
        validator = Validator(self._host.get_info(), refuse_nonfinite=self._config.refuse_nonfinite)
        parts = (self._host, validator, self._config, self._statistics)
        self._calls, self._sessions = CallService(*parts), SessionService(*parts)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if importlib.util.find_spec("grpc_reflection"):
            from grpc_reflection.v1alpha import reflection

            names = (protocol.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    def _handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        # No deserialisers: a message that cannot be parsed is then refused like any other wrong one.
        unary: Any = grpc.unary_unary_rpc_method_handler
        methods = {
            protocol.COMPUTE: unary(self._calls.compute),
            protocol.HEALTH_CHECK: unary(self._calls.health_check),
            protocol.GET_SERVICE_INFO: unary(self._calls.get_service_info),
            protocol.SESSION: grpc.stream_stream_rpc_method_handler(self._sessions.serve),
        }
        named = {path.rsplit("/", 1)[1]: handler for path, handler in methods.items()}
        return grpc.method_handlers_generic_handler(protocol.SERVICE, named)


def joined(interface: str, port: int) -> str:
    """Interface and port as one address; IPv6 addresses need brackets."""
    return f"[{interface}]:{port}" if ":" in interface else f"{interface}:{port}"
