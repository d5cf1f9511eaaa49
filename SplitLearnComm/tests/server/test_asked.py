"""Asking a server to stop, whatever it is doing just then."""

import asyncio
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

import pytest

from splitlearn_comm import GRPCComputeServer
from splitlearn_comm.server.asked import StopAsked, asking_on_signals
from splitlearn_comm.server.loop import server_loop
from splitlearn_comm.testing import RunningSumHost

NEVER = 10_000


def wait_with_a_signal_at(line: int) -> int:
    """Wait as a server does; before that line of all that Python runs for it a signal comes. Return how many ran."""
    num_lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal num_lines
        num_lines += event == "line"
        if event == "line" and num_lines == line:
            signal.raise_signal(signal.SIGTERM)
        return trace

    asked = StopAsked(server_loop().loop)
    with asking_on_signals(asked):
        if line == NEVER:
            asked.ask()
        sys.settrace(trace)
        try:
            asked.wait()
        finally:
            sys.settrace(None)
    return num_lines


@pytest.mark.timeout(30)
def test_a_signal_ends_the_wait_whenever_it_comes() -> None:
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    for line in range(1, wait_with_a_signal_at(NEVER) + 1):
        wait_with_a_signal_at(line)
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_is_cancelled_and_cleans_up_before_it_is_given_up() -> None:
    done: list[str] = []
    has_begun = asyncio.Event()

    async def work() -> None:
        try:
            has_begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("cleaned up")

    async def run() -> None:
        asked = StopAsked(asyncio.get_running_loop())
        given_up = asyncio.ensure_future(asked.unless_asked(work()))
        await has_begun.wait()
        asked.ask()
        assert await given_up is None
        assert done == ["cleaned up"]

    asyncio.run(run())


def test_work_that_ends_first_gives_its_result_or_its_error() -> None:
    async def seven() -> int:
        return 7

    async def wrong() -> int:
        raise OSError("no disk")

    async def run() -> None:
        asked = StopAsked(asyncio.get_running_loop())
        assert await asked.unless_asked(seven()) == 7
        with pytest.raises(OSError, match="no disk"):
            await asked.unless_asked(wrong())

    asyncio.run(run())


class NeverReady(RunningSumHost):
    """Is set up for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun, self.was_cancelled = threading.Event(), False

    async def setup(self) -> None:
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.was_cancelled = True


def test_a_server_that_is_still_set_up_is_stopped_and_frees_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    host = NeverReady()
    server = GRPCComputeServer(host, port=port)
    thread = threading.Thread(target=server.start)
    thread.start()
    assert host.has_begun.wait(30)
    server.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert host.was_cancelled
    assert not server.is_running
    socket.create_server(("127.0.0.1", port)).close()
