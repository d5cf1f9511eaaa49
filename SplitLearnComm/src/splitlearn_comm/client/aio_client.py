"""The asyncio client."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import grpc
import grpc.aio
import torch

import splitlearn_comm.protocol as protocol
from splitlearn_comm.client.aio_session import AsyncClientSession
from splitlearn_comm.client.aio_stream import AsyncStream
from splitlearn_comm.client.cursor import SessionCursor
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import translate
from splitlearn_comm.client.settings import ClientOptions, ClientSettings, check_size
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.framing import calls, service
from splitlearn_comm.messages import ComputeCall, KVEntries, ServiceInfo


class AsyncComputeClient:
    """`GRPCComputeClient` for asyncio: the same arguments and methods, awaited. Make and use it on one event loop."""

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        self._settings = ClientSettings(address=address, **options)
        self._channel = self._settings.credentials.aio_channel(address, self._settings.channel_options())
        self._compute = self._channel.unary_unary(protocol.COMPUTE, None, None)
        self._get_info = self._channel.unary_unary(protocol.GET_SERVICE_INFO, None, None)
        self._health = self._channel.unary_unary(protocol.HEALTH_CHECK, None, None)
        self._session = self._channel.stream_stream(protocol.SESSION, None, None)
        self._statistics = ClientStatistics()
        self._info: ServiceInfo | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.address}>"

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._settings.address

    @overload
    async def compute(
        self,
        tensor: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVEntries | None = None,
        use_cache: Literal[False] = False,
        expected_fingerprint: str | None = None,
        timeout_s: float | None = None,
    ) -> torch.Tensor: ...

    @overload
    async def compute(
        self,
        tensor: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVEntries | None = None,
        use_cache: Literal[True],
        expected_fingerprint: str | None = None,
        timeout_s: float | None = None,
    ) -> tuple[torch.Tensor, KVEntries]: ...

    async def compute(
        self,
        tensor: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVEntries | None = None,
        use_cache: bool = False,
        expected_fingerprint: str | None = None,
        timeout_s: float | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
        """Call the server's function; nothing stays on the server. As `GRPCComputeClient.compute`."""
        call = ComputeCall(tensor, attention_mask, position_ids, past_key_values, use_cache)
        message = check_size(calls.encode_call(call, expected_fingerprint), self._settings.limit_bytes(self._info))
        deadline = Deadline.after(timeout_s or self._settings.timeout_s)
        return calls.unpacked(calls.decode_result(await self._call(self._compute, message, deadline)), use_cache)

    def session(self, expected_fingerprint: str | None = None) -> AsyncClientSession:
        """A session: state on the server, moved on step by step. Use it with `async with`, which opens it.

        Args:
            expected_fingerprint: What the server's must be; None not to compare.
        """
        cursor = SessionCursor(self._settings, expected_fingerprint)
        return AsyncClientSession(self._open_stream, self._settings, cursor)

    async def get_info(self) -> ServiceInfo:
        """What is served; asked once."""
        if self._info is None:
            deadline = Deadline.after(self._settings.connect_timeout_s)
            self._info = service.decode_info(await self._call(self._get_info, b"", deadline))
        return self._info

    async def health(self) -> bool:
        """Whether the server takes calls now. Raises `ServerUnavailableError` if there is none, without retrying."""
        deadline = Deadline.after(self._settings.connect_timeout_s)
        return service.decode_health(await self._try(self._health, b"", deadline))

    def statistics(self) -> ClientStatistics:
        """What was counted up to now."""
        return replace(self._statistics)

    async def close(self) -> None:
        """End all sessions and the connection. May be called twice."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, message: bytes, deadline: Deadline) -> bytes:
        return await self._settings.retry.execute_async(lambda: self._try(method, message, deadline), deadline)

    async def _try(self, method: Any, message: bytes, deadline: Deadline) -> bytes:
        try:
            reply: bytes = await method(
                message, timeout=deadline.remaining_s(), metadata=self._settings.credentials.metadata()
            )
        except grpc.RpcError as error:
            raise translate(error, self.address, deadline.timeout_s) from error
        self._statistics.count_sent(len(message))
        self._statistics.bytes_received += len(reply)
        return reply

    def _open_stream(self) -> AsyncStream:
        call: Any = self._session(None, metadata=self._settings.credentials.metadata())
        return AsyncStream(call, self.address, self._settings.inbox(), self._statistics)
