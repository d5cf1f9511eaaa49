"""Unary calls: compute, health, information."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc.aio

from splitlearn_comm.contained import awaited
from splitlearn_comm.errors import MessageTooLargeError
from splitlearn_comm.framing import calls, service
from splitlearn_comm.messages import HealthReport
from splitlearn_comm.server.ceasing import Ceasing
from splitlearn_comm.server.config import GRPCServerConfig
from splitlearn_comm.server.faults import abort, as_comm_error
from splitlearn_comm.server.security.caller import CALLER
from splitlearn_comm.server.served import Services
from splitlearn_comm.server.statistics import ServerStatistics

Context = grpc.aio.ServicerContext[Any, Any]


class CallService:
    """Serves the unary calls of `ComputeService`.

    Args:
        services: Where hosts are leased.
        config: Limits.
        statistics: Where to count.
        use_adapter: Is told the client and the adapter of each call, before it and when it is done.
    """

    def __init__(
        self,
        services: Services,
        config: GRPCServerConfig,
        statistics: ServerStatistics,
        use_adapter: Callable[[str, str], None],
    ) -> None:
        self._services = services
        self._use_adapter = use_adapter
        self._config = config
        self._statistics = statistics
        self.is_serving = False
        self._ceasing = Ceasing()

    async def wait_until_they_cease(self, timeout_s: float) -> None:
        """Wait, once health has fallen, until no stateless call comes any more, and no longer than that."""
        until_s = time.monotonic() + timeout_s
        # There is nothing to wait on: it is silence that is waited for.
        while wait_s := self._ceasing.wait_s(time.monotonic(), until_s):  # noqa: ASYNC110
            await asyncio.sleep(wait_s)

    async def compute(self, data: bytes, context: Context) -> bytes:
        """The handler of Compute."""
        self._ceasing.called(time.monotonic())
        reply = await self._answer("a compute call", self._compute(data), context)
        self._statistics.computes += 1
        self._statistics.bytes_received += len(data)
        self._statistics.bytes_sent += len(reply)
        return reply

    async def get_service_info(self, _: bytes, context: Context) -> bytes:
        """The handler of GetServiceInfo."""
        return await self._answer("a question for information", self._info(), context)

    async def health_check(self, data: bytes, context: Context) -> bytes:
        """The handler of HealthCheck."""
        return await self._answer("a health check", self._health(data), context)

    async def _answer(self, doing: str, work: Awaitable[bytes], context: Context) -> bytes:
        try:
            return await work
        except Exception as error:
            self._statistics.refusals += 1
            return await abort(context, as_comm_error(error, doing))

    async def _compute(self, data: bytes) -> bytes:
        call, expected_fingerprint, kv = calls.decode_call(data, self._config.max_message_bytes)
        served = self._services.lease(expected_fingerprint)
        try:
            served.validator.check_call(call)
            named = replace(call, client=CALLER.get().account.name)
            served.load.steps += 1
            self._use_adapter(named.client, named.adapter)
            try:
                result = await awaited(served.host.compute, named)
            finally:
                self._use_adapter(named.client, named.adapter)
                served.load.steps -= 1
        finally:
            served.release()
        reply = calls.encode_result(result, kv.to_client)
        if len(reply) > self._config.max_message_bytes:
            raise MessageTooLargeError(
                f"the answer has {len(reply)} bytes, and the server sends at most {self._config.max_message_bytes}; "
                f"send a smaller batch, or raise max_message_bytes on both sides"
            )
        return reply

    async def _health(self, data: bytes) -> bytes:
        padding, with_load = service.decode_health_question(data)
        report = await self._services.health() if with_load else HealthReport(serving=self._services.serves_wanted())
        return service.encode_health(replace(report, serving=report.serving and self.is_serving), padding)

    async def _info(self) -> bytes:
        return service.encode_info(self._services.info())
