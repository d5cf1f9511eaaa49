"""Who uses an asyncio session at the same time: its opening counts, and a close is said."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch

from splitlearn_comm import Action, AsyncComputeClient, ClientClosedError, GRPCComputeServer
from splitlearn_comm.client.aio_session import AsyncClientSession
from splitlearn_comm.testing import RunningSumHost

ONE = torch.ones(1, 1, 4)


class HeldUp(RunningSumHost):
    """Opens, and steps, when it is let."""

    def __init__(self, *, holds_open: bool) -> None:
        super().__init__()
        self._holds_open = holds_open
        self.was_asked, self.may_go_on = threading.Event(), threading.Event()

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        if self._holds_open:
            await self._hold()
        await super().open_session(session_id, client)

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        if not self._holds_open:
            await self._hold()
        return await super().run_step(session_id, action)

    async def _hold(self) -> None:
        self.was_asked.set()
        await asyncio.to_thread(self.may_go_on.wait, 60)


@asynccontextmanager
async def session_at(host: HeldUp) -> AsyncIterator[AsyncClientSession]:
    server = GRPCComputeServer(host, port=0)
    await asyncio.to_thread(server.start, block=False)
    try:
        async with AsyncComputeClient(server.address) as client:
            yield client.session()
    finally:
        host.may_go_on.set()
        await asyncio.to_thread(server.stop)


def test_a_step_while_it_opens_is_a_second_user() -> None:
    async def run() -> None:
        host = HeldUp(holds_open=True)
        async with session_at(host) as session:
            opening = asyncio.create_task(session.open())
            await asyncio.to_thread(host.was_asked.wait, 60)
            with pytest.raises(RuntimeError, match="two tasks use one session"):
                await session.step(ONE)
            host.may_go_on.set()
            await opening
            assert torch.equal(await session.step(ONE), ONE)

    asyncio.run(run())


def test_a_close_while_it_opens_waits_for_nothing() -> None:
    async def run() -> None:
        host = HeldUp(holds_open=True)
        async with session_at(host) as session:
            opening = asyncio.create_task(session.open())
            await asyncio.to_thread(host.was_asked.wait, 60)
            await session.close()
            # The host still holds the opening up: nobody has waited for its answer.
            assert not host.may_go_on.is_set()
            with pytest.raises(ClientClosedError, match="was closed here"):
                await opening

    asyncio.run(run())


def test_a_step_behind_a_close_says_so_while_another_is_under_way() -> None:
    async def run() -> None:
        host = HeldUp(holds_open=False)
        async with session_at(host) as session:
            stepping = asyncio.create_task(session.step(ONE))
            await asyncio.to_thread(host.was_asked.wait, 60)
            closing = asyncio.create_task(session.close())
            await asyncio.sleep(0)
            with pytest.raises(ClientClosedError, match="was closed here"):
                await session.step(ONE)
            await closing
            with pytest.raises(ClientClosedError, match="was closed here"):
                await stepping

    asyncio.run(run())
