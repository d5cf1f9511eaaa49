"""The asyncio client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, Never, Self, Unpack, overload

import grpc
import grpc.aio
import torch

import splitlearn_comm.protocol as protocol
from splitlearn_comm.checks import check_inputs, check_no_options
from splitlearn_comm.client.address_book import book_of
from splitlearn_comm.client.aio_session import AsyncClientSession
from splitlearn_comm.client.aio_stream import AsyncStream
from splitlearn_comm.client.asking import AsyncAsking
from splitlearn_comm.client.chooser import CodecChooser, Question, Reply, Work
from splitlearn_comm.client.closing import AsyncClosing, closed_here, is_cancelled_by_its_owner
from splitlearn_comm.client.course import Pause, SessionCourse
from splitlearn_comm.client.cursor import SessionCursor
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import translate, worth_another_round
from splitlearn_comm.client.retry import ONCE
from splitlearn_comm.client.settings import ClientOptions, check_size, settings_of
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.client.watching import WatchedCall
from splitlearn_comm.codec import AutoCodec, CodecChoice
from splitlearn_comm.errors import CommError, ResourceExhaustedError, ServerUnavailableError, ServiceNotFoundError
from splitlearn_comm.framing import calls, service
from splitlearn_comm.framing.statistics import decode_statistics, encode_watch
from splitlearn_comm.messages import ComputeCall, KVEntries, ServiceInfo
from splitlearn_comm.samples import StatisticsReading

_ADVICE = "make an AsyncComputeClient inside async def, on the loop that uses it"


class AsyncComputeClient:
    """`GRPCComputeClient` for asyncio: the same arguments and methods, awaited. Make it inside `async def`, on the loop
    that uses it; anything else is a `RuntimeError`."""

    def __init__(self, address: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self._book = book_of(address)
        addresses = self._book.addresses
        self._settings = settings_of(addresses, options)
        self._loop = running_loop()
        self._channels: dict[str, grpc.aio.Channel] = {
            address: self._settings.credentials.aio_channel(
                address, self._settings.channel_options(), self._settings.interceptors
            )
            for address in addresses
        }
        self._methods: dict[tuple[str, str], Any] = {
            (address, path): channel.unary_unary(path, None, None)
            for address, channel in self._channels.items()
            for path in (protocol.COMPUTE, protocol.GET_SERVICE_INFO, protocol.HEALTH_CHECK)
        }
        self._statistics = ClientStatistics()
        self._info: ServiceInfo | None = None
        self._closing = AsyncClosing()
        self._chooser = CodecChooser(self._settings.auto or AutoCodec(), self._settings.max_message_bytes)
        # What two measure over one link at the same time is half of what there is.
        self._choosing = {address: asyncio.Lock() for address in addresses}
        self._asking = AsyncAsking(self._book, self._settings.service, self._ask)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.address}>"

    @property
    def address(self) -> str:
        """Where the server is; several addresses with commas between them."""
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
        adapter: str | None = None,
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
        adapter: str | None = None,
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
        adapter: str | None = None,
        timeout_s: float | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
        """Call the server's function; nothing stays on the server. As `GRPCComputeClient.compute`."""
        check_inputs(tensor, attention_mask, position_ids)
        self._check_open()
        deadline = Deadline.after(self._settings.compute_timeout_s if timeout_s is None else timeout_s)
        call = ComputeCall(tensor, attention_mask, position_ids, past_key_values, use_cache, adapter or "")
        kv = self._settings.plan.agreed.kv
        message = check_size(calls.encode_call(call, expected_fingerprint, kv), self._settings.limit_bytes(self._info))
        reply = await self._call(protocol.COMPUTE, message, deadline)
        return calls.unpacked(calls.decode_result(reply, kv.to_client, self._settings.max_message_bytes), use_cache)

    def session(
        self, expected_fingerprint: str | None = None, *, adapter: str | None = None, **options: Never
    ) -> AsyncClientSession:
        """A session: state on the server, moved on step by step. Use it with `async with`, which opens it.

        Args:
            expected_fingerprint: What the server's must be; None not to compare.
            adapter: Name of an adapter of this client at the server, with which the session computes; None for none.
                Such a session stays at its server, and is over when that is lost.
            **options: None: codecs, timeouts and the like are the client's.
        """
        check_no_options(options, ClientOptions.__annotations__)
        cursor = SessionCursor(self._settings, expected_fingerprint, adapter)
        course = SessionCourse(cursor, self._book, self._statistics)
        connect = partial(self._open_stream, cursor)
        ask_all = self._asking.ask_all
        return AsyncClientSession(connect, self._choose_codec, ask_all, self._closing, self._settings, cursor, course)

    async def get_info(self) -> ServiceInfo:
        """What is served; asked once."""
        if self._info is None:
            deadline = Deadline.after(self._settings.control_timeout_s)
            self._info = service.decode_info(await self._call(protocol.GET_SERVICE_INFO, b"", deadline))
        return self._info

    async def health(self) -> bool:
        """Whether a server takes calls now. Raises `ServerUnavailableError` if there is none, without retrying."""
        deadline = Deadline.after(self._settings.control_timeout_s)
        last: ServerUnavailableError | None = None
        for address in self._settings.addresses:
            try:
                if service.decode_health(await self._try(address, protocol.HEALTH_CHECK, b"", deadline)).serving:
                    return True
            except ServerUnavailableError as error:
                last = error
        if last is not None:
            raise last
        return False

    async def watch_statistics(self, interval_s: float = 5.0) -> AsyncIterator[StatisticsReading]:
        """As `GRPCComputeClient.watch_statistics`, for `async for`."""
        failures: list[tuple[str, CommError]] = []
        for address in self._book.order(time.monotonic()):
            has_begun = False
            try:
                async for reading in self._watch_at(address, encode_watch(interval_s)):
                    has_begun = True
                    yield reading
            except ServerUnavailableError as error:
                if has_begun:
                    raise
                failures.append((address, error))
            else:
                return
        raise worth_another_round(failures)

    def codec_choices(self) -> dict[str, CodecChoice]:
        """What `codec="auto"` has chosen up to now, and why, by the address of the server."""
        return self._chooser.choices()

    def statistics(self) -> ClientStatistics:
        """What was counted up to now."""
        return replace(self._statistics)

    async def close(self) -> None:
        """End all sessions and the connection. May be called twice, and while other tasks use the client: what they
        wait for ends with `ClientClosedError`."""
        self._closing.close()
        for channel in self._channels.values():
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, path: str, message: bytes, deadline: Deadline) -> bytes:
        retry = self._settings.retry if self._book.may_retry() else ONCE
        return await retry.execute_async(
            lambda: self._try_each(path, message, deadline), deadline, pause=self._closing.pause
        )

    async def _try_each(self, path: str, message: bytes, deadline: Deadline) -> bytes:
        """The answer of the first server that can be reached, serves what is asked for and has room."""
        failures: list[tuple[str, CommError]] = []
        for address in await self._to_try(path, deadline):
            try:
                return await self._try(address, path, message, deadline)
            except (ServerUnavailableError, ResourceExhaustedError, ServiceNotFoundError) as error:
                failures.append((address, error))
        raise worth_another_round(failures)

    async def _to_try(self, path: str, deadline: Deadline) -> list[str]:
        if path != protocol.COMPUTE:
            return self._book.order(time.monotonic())
        await self._asking.ask_all(deadline, for_call=True)
        return self._book.choose(time.monotonic(), self._settings.service)

    async def _try(self, address: str, path: str, message: bytes, deadline: Deadline) -> bytes:
        self._book.begin_call(address)
        try:
            reply = await self._ask(address, path, message, deadline)
        except ServerUnavailableError as error:
            self._book.failed(address, time.monotonic(), error)
            raise
        finally:
            self._book.end_call(address)
        self._book.succeeded(address)
        return reply

    async def _ask(self, address: str, path: str, message: bytes, deadline: Deadline) -> bytes:
        method = self._methods[address, path]
        with WatchedCall(self._settings.observer, path, len(message)) as call:
            metadata = (*self._settings.metadata(), *call.metadata())
            self._check_open()
            try:
                reply: bytes = await method(message, timeout=deadline.remaining_s(), metadata=metadata)
            except grpc.RpcError as error:
                raise translate(error, address, deadline.timeout_s) from error
            except asyncio.CancelledError:
                if is_cancelled_by_its_owner():
                    raise
                raise closed_here() from None
            call.bytes_received = len(reply)
        self._statistics.count_sent(len(message))
        self._statistics.bytes_received += len(reply)
        return reply

    async def _watch_at(self, address: str, message: bytes) -> AsyncIterator[StatisticsReading]:
        method: Any = self._channels[address].unary_stream(protocol.WATCH_STATISTICS, None, None)
        with WatchedCall(self._settings.observer, protocol.WATCH_STATISTICS, len(message)) as watched:
            self._check_open()
            call = method(message, metadata=(*self._settings.metadata(), *watched.metadata()))
            try:
                async for data in call:
                    yield decode_statistics(data)
            except grpc.RpcError as error:
                raise translate(error, address, self._settings.control_timeout_s) from error
            except asyncio.CancelledError:
                if is_cancelled_by_its_owner():
                    raise
                raise closed_here() from None
            finally:
                call.cancel()

    def _check_open(self) -> None:
        if running_loop() is not self._loop:
            raise RuntimeError(f"this client belongs to another event loop: {_ADVICE}")
        if self._closing.is_closed:
            raise closed_here()

    async def _choose_codec(self, address: str, deadline: Deadline) -> CodecChoice:
        """What to code hidden states with over the link to a server: what was chosen, or chosen now."""
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await self._choosing[address].acquire()
        except TimeoutError as error:
            raise deadline.exceeded() from error
        try:
            return await self._follow_choice(address, deadline)
        finally:
            self._choosing[address].release()

    async def _follow_choice(self, address: str, deadline: Deadline) -> CodecChoice:
        asking = self._chooser.choosing(address)
        try:
            effect = next(asking)
            while True:
                try:
                    result = await self._perform(effect, address, deadline)
                except CommError as error:
                    effect = asking.throw(error)
                else:
                    effect = asking.send(result)
        except StopIteration as end:
            choice: CodecChoice = end.value
            return choice

    async def _perform(self, effect: Question | Pause | Work, address: str, deadline: Deadline) -> Any:
        if isinstance(effect, Work):
            return await asyncio.to_thread(effect.call)
        if isinstance(effect, Pause):
            if not deadline.allows(effect.seconds):
                return None
            await self._closing.pause(effect.seconds)
            return None
        began_s = time.perf_counter()
        message = await self._ask(address, effect.path, effect.message, deadline)
        return Reply(message, time.perf_counter() - began_s)

    def _open_stream(self, cursor: SessionCursor, address: str) -> AsyncStream:
        self._check_open()
        method: Any = self._channels[address].stream_stream(protocol.SESSION, None, None)
        call: Any = method(None, metadata=cursor.metadata())
        return AsyncStream(call, address, self._settings.inbox(cursor.codecs), self._statistics)


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop that runs here. Raises `RuntimeError` where none does: gRPC would take one that never runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(f"no event loop runs here: {_ADVICE}") from None
