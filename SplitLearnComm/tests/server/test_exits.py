"""A service that asks for the end of the process: the client is told that the server failed, and the server goes on."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from splitlearn_comm import ComputeCall, ComputeFunction, ComputeResult, GRPCComputeServer, RemoteInternalError
from splitlearn_comm.messages import Action
from splitlearn_comm.quickstart import Client
from splitlearn_comm.server.loop import LoopThread
from splitlearn_comm.testing import RunningSumHost, ServerProcess, eventually

TOKEN = torch.ones(1, 1, 4)


class OddEnd(BaseException):
    """Neither an error nor the end of anything."""


def leave() -> None:
    sys.exit(3)


def interrupt() -> None:
    raise KeyboardInterrupt


def end_generator() -> None:
    raise GeneratorExit


def cancel() -> None:
    raise asyncio.CancelledError


def end_oddly() -> None:
    raise OddEnd("of all things")


ENDS = {
    "SystemExit(3)": leave,
    "KeyboardInterrupt()": interrupt,
    "GeneratorExit()": end_generator,
    "CancelledError()": cancel,
    "OddEnd('of all things')": end_oddly,
}


class Ending(ComputeFunction):
    """Ends with negative numbers; gives back all others."""

    def __init__(self, end: Callable[[], None] = leave, *, inline: bool = False) -> None:
        self.inline = inline
        self._end = end

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.sum() < 0:
            self._end()
        return tensor


class EndingHost(RunningSumHost):
    """A host whose own coroutines end with negative numbers."""

    def __init__(self, end: Callable[[], None]) -> None:
        super().__init__()
        self._end = end

    async def compute(self, call: ComputeCall) -> ComputeResult:
        if call.tensor.sum() < 0:
            self._end()
        return await super().compute(call)

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        if getattr(action, "hidden", TOKEN).sum() < 0:
            self._end()
        return await super().run_step(session_id, action)


def assert_fails(attempt: Callable[[torch.Tensor], object], told: str, caplog: pytest.LogCaptureFixture) -> None:
    """The client hears that the server failed, and the server's log has with what."""
    with pytest.raises(RemoteInternalError, match="its log has the reason"):
        attempt(-TOKEN)
    assert f"raised {told}" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("told", list(ENDS))
def test_a_function_that_ends_the_process_fails_a_call_and_no_more(
    told: str, inline: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        GRPCComputeServer(Ending(ENDS[told], inline=inline), port=0) as server,
        Client(server.address, timeout_s=20) as client,
        client.session() as session,
    ):
        for attempt in (client.compute, session.step):
            assert_fails(attempt, told, caplog)
            assert torch.equal(attempt(TOKEN), TOKEN)


@pytest.mark.parametrize("told", ["SystemExit(3)", "KeyboardInterrupt()", "OddEnd('of all things')"])
def test_a_host_that_ends_the_process_fails_a_call_or_a_session_and_no_more(
    told: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        GRPCComputeServer(EndingHost(ENDS[told]), port=0) as server,
        Client(server.address, timeout_s=20) as client,
        client.session() as session,
    ):
        for attempt in (client.compute, session.step):
            assert_fails(attempt, told, caplog)
        with client.session() as another:
            assert torch.equal(another.step(TOKEN), client.compute(TOKEN))


@pytest.mark.slow
@pytest.mark.parametrize("inline", [False, True])
def test_such_a_server_still_ends_with_its_first_signal(
    inline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(
        "import sys\n"
        "from splitlearn_comm import ComputeFunction\n"
        "class Leaving(ComputeFunction):\n"
        f"    inline = {inline}\n"
        "    def compute(self, tensor): sys.exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with ServerProcess("leaving:Leaving") as process:
        with Client(process.address, timeout_s=20) as client, pytest.raises(RemoteInternalError):
            client.compute(TOKEN)
        assert process.interrupt() == 0


class EndingSetup(RunningSumHost):
    async def setup(self) -> None:
        leave()


def test_a_set_up_that_ends_the_process_is_for_who_starts_the_server() -> None:
    server = GRPCComputeServer(EndingSetup(), port=0)
    for block in (False, True):
        with pytest.raises(SystemExit, match="3"):
            server.start(block=block)
    with GRPCComputeServer(Ending(), port=0) as other, Client(other.address, timeout_s=20) as client:
        assert torch.equal(client.compute(TOKEN), TOKEN)


def test_the_loop_survives_whatever_runs_on_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        thread = LoopThread()
        thread.loop.call_soon_threadsafe(leave)
        eventually(lambda: "SystemExit" in caplog.text)

        async def seven() -> int:
            return 7

        assert thread.run(seven()) == 7
    thread.loop.call_soon_threadsafe(thread.loop.stop)
