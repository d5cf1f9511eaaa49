"""The synchronous client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, Never, Self, Unpack, overload

import grpc
import torch

import splitlearn_comm.protocol as protocol
from splitlearn_comm.checks import check_inputs, check_no_options
from splitlearn_comm.client.address_book import book_of
from splitlearn_comm.client.asking import Asking
from splitlearn_comm.client.chooser import CodecChooser, Question, Reply, Work
from splitlearn_comm.client.closing import Closing, closed_here
from splitlearn_comm.client.course import Pause, SessionCourse
from splitlearn_comm.client.cursor import SessionCursor
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.client.failures import translate, worth_another_round
from splitlearn_comm.client.retry import ONCE
from splitlearn_comm.client.session import ClientSession
from splitlearn_comm.client.settings import ClientOptions, check_size, settings_of
from splitlearn_comm.client.statistics import ClientStatistics
from splitlearn_comm.client.stream import SyncStream
from splitlearn_comm.client.watch import DeadlineWatch
from splitlearn_comm.client.watching import WatchedCall
from splitlearn_comm.codec import AutoCodec, CodecChoice
from splitlearn_comm.errors import CommError, ResourceExhaustedError, ServerUnavailableError, ServiceNotFoundError
from splitlearn_comm.framing import calls, service
from splitlearn_comm.framing.statistics import decode_statistics, encode_watch
from splitlearn_comm.messages import ComputeCall, KVEntries, ServiceInfo
from splitlearn_comm.samples import StatisticsReading


class GRPCComputeClient:
    """Calls a server's function, and opens sessions on it. Connects at the first call. May be used by several threads.

    Args:
        address: `host:port` of the server, or a list of several: calls and sessions go to the least loaded that serves
            what is asked for, and a session that loses its server goes on at another. An `AddressBook` says more of
            them, and may be shared by several clients.
        **options: Timeouts, retries, limits, codecs: the fields of `ClientSettings`.

    Raises:
        ValueError: An option is out of range, or names a codec that there is not.
        TypeError: There is no such option.
    """

    def __init__(self, address: str | Sequence[str], **options: Unpack[ClientOptions]) -> None:
        self._book = book_of(address)
        addresses = self._book.addresses
        self._settings = settings_of(addresses, options)
        self._channels: dict[str, grpc.Channel] = {
            address: self._settings.credentials.channel(
                address, self._settings.channel_options(), self._settings.interceptors
            )
            for address in addresses
        }
        self._watch = DeadlineWatch()
        self._closing = Closing()
        self._methods: dict[tuple[str, str], Any] = {
            (address, path): channel.unary_unary(path, None, None)
            for address, channel in self._channels.items()
            for path in (protocol.COMPUTE, protocol.GET_SERVICE_INFO, protocol.HEALTH_CHECK)
        }
        self._statistics = ClientStatistics()
        self._info: ServiceInfo | None = None
        self._chooser = CodecChooser(self._settings.auto or AutoCodec(), self._settings.max_message_bytes)
        # What two measure over one link at the same time is half of what there is.
        self._choosing = {address: threading.Lock() for address in addresses}
        self._asking = Asking(self._book, self._settings.service, self._ask)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.address}>"

    @property
    def address(self) -> str:
        """Where the server is; several addresses with commas between them."""
        return self._settings.address

    @overload
    def compute(
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
    def compute(
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

    def compute(
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
        """Call the server's function; nothing stays on the server.

        Args:
            tensor: The input, on any device; for a model part hidden states [B, T, H] of the server's dtype.
            attention_mask: [B, past + T], bool or integer; None for no padding.
            position_ids: [B, T], integer; None to go on from the cache.
            past_key_values: The cache an earlier call gave; None at first.
            use_cache: Whether to return the cache too.
            expected_fingerprint: What the server's must be; None not to compare.
            adapter: Name of an adapter of this client at the server, with which to compute; None for none.
            timeout_s: How long it may take, retries included; by default the client's.

        Returns:
            The output on the CPU; with `use_cache` the pair of output and cache.

        Raises:
            CommError: One of its kinds; see `splitlearn_comm.errors`.
        """
        check_inputs(tensor, attention_mask, position_ids)
        deadline = Deadline.after(self._settings.compute_timeout_s if timeout_s is None else timeout_s)
        call = ComputeCall(tensor, attention_mask, position_ids, past_key_values, use_cache, adapter or "")
        kv = self._settings.plan.agreed.kv
        message = check_size(calls.encode_call(call, expected_fingerprint, kv), self._settings.limit_bytes(self._info))
        reply = self._call(protocol.COMPUTE, message, deadline)
        return calls.unpacked(calls.decode_result(reply, kv.to_client, self._settings.max_message_bytes), use_cache)

    def session(
        self, expected_fingerprint: str | None = None, *, adapter: str | None = None, **options: Never
    ) -> ClientSession:
        """Open a session: state on the server, moved on step by step. Close it, or use it with `with`.

        Args:
            expected_fingerprint: What the server's must be; None not to compare.
            adapter: Name of an adapter of this client at the server, with which the session computes; None for none.
                Such a session stays at its server, and is over when that is lost.
            **options: None: codecs, timeouts and the like are the client's.

        Raises:
            TypeError: There is such an argument.
            FingerprintMismatchError: The server's is another.
            AdapterNotFoundError: This client has no such adapter there.
            ServerUnavailableError: The server cannot be reached.
            ResourceExhaustedError: The server has no room for another session.
        """
        check_no_options(options, ClientOptions.__annotations__)
        cursor = SessionCursor(self._settings, expected_fingerprint, adapter)
        course = SessionCourse(cursor, self._book, self._statistics)
        connect = partial(self._open_stream, cursor)
        return ClientSession(
            connect, self._choose_codec, self._asking.ask_all, self._closing, self._settings, cursor, course
        )

    def get_info(self) -> ServiceInfo:
        """What is served; asked once."""
        if self._info is None:
            deadline = Deadline.after(self._settings.control_timeout_s)
            self._info = service.decode_info(self._call(protocol.GET_SERVICE_INFO, b"", deadline))
        return self._info

    def health(self) -> bool:
        """Whether a server takes calls now. Raises `ServerUnavailableError` if there is none, without retrying."""
        deadline = Deadline.after(self._settings.control_timeout_s)
        last: ServerUnavailableError | None = None
        for address in self._settings.addresses:
            try:
                if service.decode_health(self._try(address, protocol.HEALTH_CHECK, b"", deadline)).serving:
                    return True
            except ServerUnavailableError as error:
                last = error
        if last is not None:
            raise last
        return False

    def watch_statistics(self, interval_s: float = 5.0) -> Iterator[StatisticsReading]:
        """The figures of the first server that can be reached, now and after each interval, until the iterator is
        closed or the server stops.

        Args:
            interval_s: Seconds between two readings, from 1 to 60.

        Raises:
            InvalidRequestError: The interval is out of range.
            UnsupportedOperationError: The server keeps no figures.
            ServerUnavailableError: No server can be reached, or the one that is watched stops.
        """
        failures: list[tuple[str, CommError]] = []
        for address in self._book.order(time.monotonic()):
            has_begun = False
            try:
                for reading in self._watch_at(address, encode_watch(interval_s)):
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

    def close(self) -> None:
        """End all sessions and the connection. May be called twice, and while other threads use the client: what they
        wait for ends with `ClientClosedError`."""
        self._watch.close()
        self._closing.close()
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, path: str, message: bytes, deadline: Deadline) -> bytes:
        retry = self._settings.retry if self._book.may_retry() else ONCE
        return retry.execute(lambda: self._try_each(path, message, deadline), deadline, pause=self._closing.pause)

    def _try_each(self, path: str, message: bytes, deadline: Deadline) -> bytes:
        """The answer of the first server that can be reached, serves what is asked for and has room."""
        failures: list[tuple[str, CommError]] = []
        for address in self._to_try(path, deadline):
            try:
                return self._try(address, path, message, deadline)
            except (ServerUnavailableError, ResourceExhaustedError, ServiceNotFoundError) as error:
                failures.append((address, error))
        raise worth_another_round(failures)

    def _to_try(self, path: str, deadline: Deadline) -> list[str]:
        if path != protocol.COMPUTE:
            return self._book.order(time.monotonic())
        self._asking.ask_all(deadline, for_call=True)
        return self._book.choose(time.monotonic(), self._settings.service)

    def _try(self, address: str, path: str, message: bytes, deadline: Deadline) -> bytes:
        self._book.begin_call(address)
        try:
            reply = self._ask(address, path, message, deadline)
        except ServerUnavailableError as error:
            self._book.failed(address, time.monotonic(), error)
            raise
        finally:
            self._book.end_call(address)
        self._book.succeeded(address)
        return reply

    def _ask(self, address: str, path: str, message: bytes, deadline: Deadline) -> bytes:
        method = self._methods[address, path]
        with WatchedCall(self._settings.observer, path, len(message)) as call:
            metadata = (*self._settings.metadata(), *call.metadata())
            try:
                reply: bytes = method(message, timeout=deadline.remaining_s(), metadata=metadata)
            except (grpc.RpcError, ValueError) as error:
                raise self._translated(error, address, deadline) from error
            call.bytes_received = len(reply)
        self._statistics.count_sent(len(message))
        self._statistics.bytes_received += len(reply)
        return reply

    def _watch_at(self, address: str, message: bytes) -> Iterator[StatisticsReading]:
        method: Any = self._channels[address].unary_stream(protocol.WATCH_STATISTICS, None, None)
        with WatchedCall(self._settings.observer, protocol.WATCH_STATISTICS, len(message)) as watched:
            call = None
            try:
                call = method(message, metadata=(*self._settings.metadata(), *watched.metadata()))
                yield from map(decode_statistics, call)
            except (grpc.RpcError, ValueError) as error:
                raise self._translated(error, address, Deadline.after(self._settings.control_timeout_s)) from error
            finally:
                if call is not None:
                    call.cancel()

    def _translated(self, error: grpc.RpcError | ValueError, address: str, deadline: Deadline) -> Exception:
        # On a channel that is closed gRPC raises ValueError; calls that it ended look as if the server had done it.
        if self._watch.is_closed:
            return closed_here()
        return translate(error, address, deadline.timeout_s) if isinstance(error, grpc.RpcError) else error

    def _choose_codec(self, address: str, deadline: Deadline) -> CodecChoice:
        """What to code hidden states with over the link to a server: what was chosen, or chosen now."""
        if not self._choosing[address].acquire(timeout=deadline.remaining_s()):
            raise deadline.exceeded()
        try:
            return self._follow_choice(address, deadline)
        finally:
            self._choosing[address].release()

    def _follow_choice(self, address: str, deadline: Deadline) -> CodecChoice:
        asking = self._chooser.choosing(address)
        try:
            effect = next(asking)
            while True:
                try:
                    result = self._perform(effect, address, deadline)
                except CommError as error:
                    effect = asking.throw(error)
                else:
                    effect = asking.send(result)
        except StopIteration as end:
            choice: CodecChoice = end.value
            return choice

    def _perform(self, effect: Question | Pause | Work, address: str, deadline: Deadline) -> Any:
        if isinstance(effect, Work):
            return effect.call()
        if isinstance(effect, Pause):
            if not deadline.allows(effect.seconds):
                return None
            self._closing.pause(effect.seconds)
            return None
        began_s = time.perf_counter()
        message = self._ask(address, effect.path, effect.message, deadline)
        return Reply(message, time.perf_counter() - began_s)

    def _open_stream(self, cursor: SessionCursor, address: str) -> SyncStream:
        method: Any = self._channels[address].stream_stream(protocol.SESSION, None, None)
        named: Any = partial(method, metadata=cursor.metadata())
        try:
            return SyncStream(named, address, self._settings.inbox(cursor.codecs), self._watch, self._statistics)
        except ValueError as error:
            raise (closed_here() if self._watch.is_closed else error) from None
