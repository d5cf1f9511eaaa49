"""A client or a session that is closed while another thread or task waits for it says so, in words of its own."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from splitlearn_comm import (
    AsyncComputeClient,
    ClientClosedError,
    ComputeCall,
    ComputeResult,
    GRPCComputeClient,
    GRPCComputeServer,
    ResourceExhaustedError,
)
from splitlearn_comm.client import FixedDelay
from splitlearn_comm.messages import Action
from splitlearn_comm.testing import Gated, RunningSumHost, ServerProcess, eventually

TOKEN = torch.ones(1, 1, 4)
SLOWLY = FixedDelay(0.1, max_attempts=1000)
wants = pytest.mark.parametrize("closed", ["client", "session"])


@wants
def test_while_a_thread_waits_for_an_answer(closed: str) -> None:
    function = Gated()
    with (
        GRPCComputeServer(function, port=0) as server,
        GRPCComputeClient(server.address, retry=SLOWLY) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        session = client.session()
        waiting = [pool.submit(session.step, TOKEN)]
        if closed == "client":
            waiting.append(pool.submit(client.compute, TOKEN))
        try:
            function.entered.acquire()
            {"client": client, "session": session}[closed].close()
            errors = [call.exception() for call in waiting]
        finally:
            function.gate.set()
    for error in errors:
        assert isinstance(error, ClientClosedError)
        assert "closed here, by this program" in str(error)


@wants
def test_while_a_task_waits_for_an_answer(closed: str) -> None:
    function = Gated()

    async def main(address: str) -> list[Any]:
        client = AsyncComputeClient(address, retry=SLOWLY)
        session = client.session()
        waiting = [asyncio.create_task(session.step(TOKEN))]
        if closed == "client":
            waiting.append(asyncio.create_task(client.compute(TOKEN)))
        await asyncio.to_thread(function.entered.acquire)
        await {"client": client, "session": session}[closed].close()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        await client.close()
        return errors

    with GRPCComputeServer(function, port=0) as server:
        try:
            errors = asyncio.run(main(server.address))
        finally:
            function.gate.set()
    assert [type(error) for error in errors] == [ClientClosedError] * len(errors)


@wants
def test_while_a_thread_waits_for_a_server_to_come_back(closed: str) -> None:
    with (
        ServerProcess("splitlearn_comm.testing:RunningSumHost") as process,
        GRPCComputeClient(process.address, retry=SLOWLY) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        session = client.session()
        process.kill()
        waiting = [pool.submit(session.step, TOKEN)]
        if closed == "client":
            waiting.append(pool.submit(client.compute, TOKEN))
        eventually(lambda: client.statistics().retries > 2)
        {"client": client, "session": session}[closed].close()
        assert [type(call.exception()) for call in waiting] == [ClientClosedError] * len(waiting)


class Busy(RunningSumHost):
    """Has no room for any step, and says when to come back."""

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        raise ResourceExhaustedError("no room in the caches", retry_after_s=60.0)


@wants
def test_while_a_thread_waits_as_long_as_the_server_said(closed: str) -> None:
    with (
        GRPCComputeServer(Busy(), port=0) as server,
        GRPCComputeClient(server.address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        session = client.session()
        step = pool.submit(session.step, TOKEN)
        eventually(lambda: server.statistics().refusals > 0)
        began_s = time.monotonic()
        {"client": client, "session": session}[closed].close()
        assert isinstance(step.exception(), ClientClosedError)
        assert time.monotonic() - began_s < 20.0


@wants
def test_while_a_task_waits_as_long_as_the_server_said(closed: str) -> None:
    async def main(server: GRPCComputeServer) -> None:
        async with AsyncComputeClient(server.address) as client:
            session = client.session()
            step = asyncio.create_task(session.step(TOKEN))
            await asyncio.to_thread(eventually, lambda: server.statistics().refusals > 0)
            began_s = time.monotonic()
            await {"client": client, "session": session}[closed].close()
            with pytest.raises(ClientClosedError):
                await step
            assert time.monotonic() - began_s < 20.0

    with GRPCComputeServer(Busy(), port=0) as server:
        asyncio.run(main(server))


def test_a_closed_client_says_that_it_is_closed() -> None:
    async def ask(address: str) -> None:
        client = AsyncComputeClient(address)
        await client.close()
        for attempt in (client.health, client.get_info, lambda: client.compute(TOKEN), client.session().open):
            with pytest.raises(ClientClosedError):
                await attempt()

    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        client = GRPCComputeClient(server.address)
        session = client.session()
        client.close()
        for attempt in (
            client.health,
            client.get_info,
            client.session,
            lambda: client.compute(TOKEN),
            lambda: session.step(TOKEN),
        ):
            with pytest.raises(ClientClosedError):
                attempt()
        asyncio.run(ask(server.address))


@pytest.mark.parametrize("kind", ["call", "step"])
def test_a_task_that_is_cancelled_by_its_owner_is_cancelled(kind: str) -> None:
    function = Gated()

    async def main(address: str) -> None:
        async with AsyncComputeClient(address) as client:
            task = asyncio.create_task(client.compute(TOKEN) if kind == "call" else client.session().step(TOKEN))
            await asyncio.to_thread(function.entered.acquire)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with GRPCComputeServer(function, port=0) as server:
        asyncio.run(main(server.address))
        function.gate.set()


class Refusing(RunningSumHost):
    """Says to every call that it may be asked again in a minute."""

    async def compute(self, call: ComputeCall) -> ComputeResult:
        raise ResourceExhaustedError("no room", retry_after_s=60.0)


def test_a_call_that_pauses_before_it_is_asked_again_ends_with_its_client() -> None:
    with GRPCComputeServer(Refusing(), port=0) as server, ThreadPoolExecutor(1) as pool:
        client = GRPCComputeClient(server.address)
        waiting = pool.submit(client.compute, TOKEN)
        eventually(lambda: server.statistics().refusals == 1)
        client.close()
        assert isinstance(waiting.exception(timeout=20), ClientClosedError)

        async def main() -> BaseException | None:
            other = AsyncComputeClient(server.address)
            call = asyncio.create_task(other.compute(TOKEN))
            await asyncio.to_thread(eventually, lambda: server.statistics().refusals == 2)
            await other.close()
            return (await asyncio.gather(call, return_exceptions=True))[0]

        assert isinstance(asyncio.run(main()), ClientClosedError)
