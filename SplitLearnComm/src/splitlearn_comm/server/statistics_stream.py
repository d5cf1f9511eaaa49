"""The stream of a server's figures, for whoever watches it over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc.aio

from splitlearn_comm.contained import called
from splitlearn_comm.errors import AuthenticationError, ServerUnavailableError, UnsupportedOperationError
from splitlearn_comm.framing.statistics import decode_watch, encode_statistics
from splitlearn_comm.samples import SampleSource
from splitlearn_comm.server.faults import abort, as_comm_error
from splitlearn_comm.server.security.caller import CALLER
from splitlearn_comm.server.security.identity import REVOKED

Context = grpc.aio.ServicerContext[Any, Any]


class StatisticsService:
    """Serves `WatchStatistics`.

    Args:
        source: Tells the figures; None where there are none.
    """

    def __init__(self, source: SampleSource | None) -> None:
        self._source = source
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all streams: they would else last as long as the grace time of a server that stops."""
        self._stopping.set()

    async def watch(self, data: bytes, context: Context) -> None:
        """The handler of WatchStatistics."""
        try:
            await self._watch(data, context)
        except Exception as error:
            await abort(context, as_comm_error(error, "a stream of statistics"))

    async def _watch(self, data: bytes, context: Context) -> None:
        interval_s = decode_watch(data)
        source = self._source
        if source is None:
            raise UnsupportedOperationError("this server keeps no statistics; start it with metrics")
        while not self._stopping.is_set():
            _check_is_known()
            samples = await asyncio.to_thread(called, lambda: tuple(source()))
            await context.write(encode_statistics(time.time(), samples))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), interval_s)
        raise ServerUnavailableError("the server stops; watch another")


def _check_is_known() -> None:
    """Refuse a client whose token was taken away since the stream began."""
    acquaintance = CALLER.get().acquaintance
    if acquaintance is not None and acquaintance.is_over():
        raise AuthenticationError(REVOKED)
