"""A session that is on its way from a server that stops to another: steps, and closing it, meanwhile."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    ClientClosedError,
    CommError,
    DeadlineExceededError,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
)
from splitlearn_comm.client.aio_stream import AsyncStream
from splitlearn_comm.messages import KVEntries
from splitlearn_comm.testing import DroppingPeer, Gated, RunningSumHost, eventually

TOKEN = torch.ones(1, 1, 4)
SOON_S, LONG_S = 10.0, 60.0
"""Far more than what is to be soon takes on a busy machine, and what it would take if it were not."""
PATIENT = GRPCServerConfig(drain_idle_timeout_s=600)


@contextmanager
def stopping() -> Iterator[tuple[GRPCComputeServer, Callable[[], object]]]:
    """A server, and what makes it stop while others go on."""
    server = GRPCComputeServer(RunningSumHost(), port=0, config=PATIENT)
    server.start(block=False)
    with ThreadPoolExecutor(1) as pool:
        try:
            yield server, lambda: pool.submit(server.stop, grace_s=600)
        finally:
            server.stop(grace_s=0)


def is_leaving() -> bool:
    """Whether a synchronous session is on its way."""
    return any(thread.name == "splitlearn-leave" for thread in threading.enumerate())


def test_a_step_waits_no_longer_than_it_may_and_is_done_later() -> None:
    with stopping() as (first, stop), ExitStack() as until_it_may_end:
        hung = until_it_may_end.enter_context(DroppingPeer())
        with GRPCComputeClient(
            AddressBook([first.address, hung.address], in_order=True), connect_timeout_s=LONG_S, dead_after_s=LONG_S
        ) as client:
            session = client.session()
            session.step(TOKEN)
            stop()
            eventually(lambda: hung.num_connections > 0)
            began_s = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                session.step(TOKEN, timeout_s=0.2)
            assert time.monotonic() - began_s < SOON_S
            until_it_may_end.close()
            assert float(session.step(TOKEN)[0, 0, 0]) == 2.0
            session.close()


def test_a_step_does_not_with_asyncio_either() -> None:
    async def main(first: str, stop: Callable[[], object], until_it_may_end: ExitStack) -> None:
        hung = until_it_may_end.enter_context(DroppingPeer())
        addresses = [first, hung.address]
        async with AsyncComputeClient(
            AddressBook(addresses, in_order=True), connect_timeout_s=LONG_S, dead_after_s=LONG_S
        ) as client:
            session = client.session()
            await session.step(TOKEN)
            stop()
            await asyncio.to_thread(eventually, lambda: hung.num_connections > 0)
            began_s = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                await session.step(TOKEN, timeout_s=0.2)
            assert time.monotonic() - began_s < SOON_S
            await asyncio.to_thread(until_it_may_end.close)
            assert float((await session.step(TOKEN))[0, 0, 0]) == 2.0
            await session.close()

    with stopping() as (first, stop), ExitStack() as until_it_may_end:
        asyncio.run(main(first.address, stop, until_it_may_end))


def test_closing_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitlearn_comm.client.session.CLOSE_TIMEOUT_S", 0.2)
    with (
        stopping() as (first, stop),
        DroppingPeer() as hung,
        GRPCComputeClient(
            AddressBook([first.address, hung.address], in_order=True), connect_timeout_s=LONG_S, dead_after_s=LONG_S
        ) as client,
    ):
        session = client.session()
        stop()
        eventually(lambda: hung.num_connections > 0)
        began_s = time.monotonic()
        session.close()
        eventually(lambda: not is_leaving())
        assert time.monotonic() - began_s < SOON_S
        with pytest.raises(CommError):
            session.step(TOKEN)


def test_closing_does_not_with_asyncio_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitlearn_comm.client.aio_session.CLOSE_TIMEOUT_S", 0.2)

    async def main(addresses: list[str], hung: DroppingPeer, stop: Callable[[], object]) -> None:
        async with AsyncComputeClient(
            AddressBook(addresses, in_order=True), connect_timeout_s=LONG_S, dead_after_s=LONG_S
        ) as client:
            session: Any = client.session()
            await session.open()
            stop()
            await asyncio.to_thread(eventually, lambda: hung.num_connections > 0)
            began_s = time.monotonic()
            leaving = session._leaving
            await session.close()
            await asyncio.wait({leaving}, timeout=LONG_S)
            assert time.monotonic() - began_s < SOON_S
            with pytest.raises(CommError):
                await session.step(TOKEN)

    with stopping() as (first, stop), DroppingPeer() as hung:
        asyncio.run(main([first.address, hung.address], hung, stop))


class SlowToTake(RunningSumHost):
    """Takes a session over once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    async def import_session(self, session_id: str, cache: KVEntries) -> None:
        self.has_begun.set()
        await asyncio.to_thread(self.may_end.wait)
        await super().import_session(session_id, cache)


class SlowLock:
    """A lock that was not to be had, and says so when it is again: the moment between the two, made wide."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._then = then

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        is_taken = self._lock.acquire(blocking, timeout)
        if not is_taken:
            self._then()
        return is_taken

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


def test_a_step_that_comes_as_the_move_ends_is_that_of_no_second_thread() -> None:
    host = SlowToTake()

    def end_move() -> None:
        host.may_end.set()
        eventually(lambda: not is_leaving())

    with (
        stopping() as (first, stop),
        GRPCComputeServer(host, port=0) as second,
        GRPCComputeClient(AddressBook([first.address, second.address], in_order=True)) as client,
        client.session() as session,
    ):
        session.step(TOKEN)
        hooked: Any = session
        hooked._in_use = SlowLock(end_move)
        stop()
        host.has_begun.wait()
        assert float(session.step(TOKEN)[0, 0, 0]) == 2.0
        assert client.statistics().moves == 1


def test_two_threads_are_told_so_behind_a_move_that_failed_in_a_way_nobody_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: failures.append(args.exc_value))

    def failing(_: str) -> None:
        raise ValueError("not a failure of this package's")

    function = Gated()
    with (
        GRPCComputeServer(Gated(), port=0) as first,
        GRPCComputeServer(function, port=0) as second,
        GRPCComputeClient(AddressBook([first.address, second.address], in_order=True)) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        session: Any = client.session()
        connect, session._connect = session._connect, failing
        first.stop(grace_s=0.5)
        eventually(lambda: bool(failures) and not is_leaving())
        session._connect = connect
        step = pool.submit(session.step, TOKEN)
        function.entered.acquire()
        error = pool.submit(session.step, TOKEN)
        try:
            with pytest.raises(RuntimeError, match="two threads"):
                error.result(timeout=SOON_S)
        finally:
            function.gate.set()
        assert torch.equal(step.result(), TOKEN)
        session.close()


def test_a_step_of_another_thread_while_one_closes_is_told_that() -> None:
    host = SlowToTake()
    with (
        stopping() as (first, stop),
        GRPCComputeServer(host, port=0) as second,
        GRPCComputeClient(AddressBook([first.address, second.address], in_order=True)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        session: Any = client.session()
        session.step(TOKEN)
        stop()
        host.has_begun.wait()
        closing = pool.submit(session.close)
        eventually(lambda: session._is_closing)
        with pytest.raises(ClientClosedError):
            session.step(TOKEN)
        host.may_end.set()
        closing.result()
        assert client.statistics().moves == 1
        eventually(lambda: second.statistics().sessions_open == 0)


def test_with_asyncio_no_move_begins_while_a_step_waits_for_another() -> None:
    """The stream that the first move made ends in the moment in which that is over: its server stops too."""
    were_leaving: list[bool] = []

    async def main(address: str) -> None:
        async with AsyncComputeClient(address) as client:
            session: Any = client.session()
            await session.step(TOKEN)
            exchange = session._course.exchange

            def exchanged(*args: Any) -> Any:
                were_leaving.append(session._leaving is not None and not session._leaving.done())
                return exchange(*args)

            session._course.exchange = exchanged
            session._leaving = asyncio.create_task(asyncio.sleep(0.05))
            session._leaving.add_done_callback(lambda _: end(session._stream))

            def end(stream: AsyncStream) -> None:
                session._leaving = None
                session._leave_soon(stream)

            await session.step(TOKEN)

    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        asyncio.run(main(server.address))
    assert were_leaving == [False]
