"""Several servers under load: which of them a client takes, and what it asks for that."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    CacheUse,
    ClientClosedError,
    ComputeFunction,
    GRPCComputeClient,
    GRPCComputeServer,
    NamedHosts,
    ServiceNotFoundError,
)
from splitlearn_comm.protocol import COMPUTE, HEALTH_CHECK
from splitlearn_comm.testing import DroppingPeer, RecordingObserver, RunningSumHost, eventually

TOKEN = torch.ones(1, 1, 4)
PATIENT_S = 30.0
"""Long enough for an answer on a machine that is busy."""


def book_of(*servers: GRPCComputeServer, **options: Any) -> AddressBook:
    return AddressBook([server.address for server in servers], turn=0, patience_s=PATIENT_S, **options)


def opened(book: AddressBook, num_sessions: int, then: Callable[[], object], **options: Any) -> None:
    """Open so many sessions, do a step of each, look, and close them."""
    with GRPCComputeClient(book, **options) as client, contextlib.ExitStack() as sessions:
        for _ in range(num_sessions):
            assert torch.equal(sessions.enter_context(client.session()).step(TOKEN), TOKEN)
        then()


def opened_async(book: AddressBook, num_sessions: int, then: Callable[[], object], **options: Any) -> None:
    """The same with an asyncio client."""

    async def main() -> None:
        async with AsyncComputeClient(book, **options) as client, contextlib.AsyncExitStack() as sessions:
            for _ in range(num_sessions):
                session = await sessions.enter_async_context(client.session())
                assert torch.equal(await session.step(TOKEN), TOKEN)
            await asyncio.to_thread(then)

    asyncio.run(main())


Opened = Callable[..., None]
both_clients = pytest.mark.parametrize("open_some", [opened, opened_async], ids=["synchronous", "asyncio"])


@pytest.fixture
def servers() -> Iterator[tuple[GRPCComputeServer, GRPCComputeServer]]:
    with GRPCComputeServer(RunningSumHost(), port=0) as first, GRPCComputeServer(RunningSumHost(), port=0) as second:
        yield first, second


@both_clients
def test_sessions_of_one_client_are_spread(
    open_some: Opened, servers: tuple[GRPCComputeServer, GRPCComputeServer]
) -> None:
    counts: list[int] = []
    open_some(book_of(*servers), 6, lambda: counts.extend(server.statistics().sessions_open for server in servers))
    assert counts == [3, 3]


@both_clients
def test_sessions_of_others_are_seen(open_some: Opened, servers: tuple[GRPCComputeServer, GRPCComputeServer]) -> None:
    first, second = servers
    counts: list[int] = []
    with GRPCComputeClient(first.address) as client, contextlib.ExitStack() as sessions:
        for _ in range(4):
            sessions.enter_context(client.session())
        open_some(book_of(*servers), 3, lambda: counts.extend(server.statistics().sessions_open for server in servers))
    assert counts == [4, 3]
    assert second.statistics().sessions_opened == 3


class NearlyFull(RunningSumHost):
    """Has room for a little more."""

    async def cache_use(self) -> CacheUse:
        return CacheUse(num_bytes=99, limit_bytes=100)


@both_clients
def test_caches_that_are_nearly_full_are_seen(open_some: Opened) -> None:
    with (
        GRPCComputeServer(NearlyFull(), port=0) as first,
        GRPCComputeServer(RunningSumHost(), port=0) as second,
    ):
        open_some(book_of(first, second), 5, lambda: None)
        assert (first.statistics().sessions_opened, second.statistics().sessions_opened) == (0, 5)


@both_clients
def test_who_says_nothing_is_passed_over(open_some: Opened) -> None:
    with GRPCComputeServer(RunningSumHost(), port=0) as server, DroppingPeer() as silent:
        book = AddressBook([silent.address, server.address], turn=0, patience_s=1.0, max_age_s=1e6)
        open_some(book, 2, lambda: None, dead_after_s=600)
        assert "silent" in repr(book).partition(";")[0]
        assert server.statistics().sessions_opened == 2


@both_clients
def test_each_model_is_found_where_it_is_served(open_some: Opened) -> None:
    small, large = NamedHosts({"small": RunningSumHost()}), NamedHosts({"large": RunningSumHost()})
    with GRPCComputeServer(small, port=0) as first, GRPCComputeServer(large, port=0) as second:
        book = book_of(first, second)
        for _ in range(2):
            open_some(book, 2, lambda: None, model="large")
        assert (first.statistics().sessions_opened, second.statistics().sessions_opened) == (0, 4)
        said = rf"at {first.address}: medium .* there is small: .*; at {second.address}: medium .* there is large"
        with pytest.raises(ServiceNotFoundError, match=said):
            open_some(book, 1, lambda: None, model="medium")


def test_so_it_is_for_calls_and_information() -> None:
    small, large = NamedHosts({"small": RunningSumHost(2)}), NamedHosts({"large": RunningSumHost(4)})
    with (
        GRPCComputeServer(small, port=0) as first,
        GRPCComputeServer(large, port=0) as second,
        GRPCComputeClient(book_of(first, second), model="large") as client,
    ):
        assert client.get_info().hidden_size == 4
        assert client.health()
        for _ in range(4):
            assert torch.equal(client.compute(TOKEN), TOKEN)


def test_clients_may_share_a_book(servers: tuple[GRPCComputeServer, GRPCComputeServer]) -> None:
    book = book_of(*servers, max_age_s=1e6)
    counts: list[int] = []
    for _ in range(3):
        opened(book, 1, lambda: None)
        opened_async(book, 1, lambda: counts.extend(server.statistics().sessions_opened for server in servers))
    assert counts == [1, 1, 2, 2, 3, 3]


class Counting(ComputeFunction):
    """Gives back what it gets, and counts."""

    def __init__(self) -> None:
        self.num_calls = 0

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return tensor


def test_calls_go_to_each_in_turn() -> None:
    functions = Counting(), Counting()
    with (
        GRPCComputeServer(functions[0], port=0) as first,
        GRPCComputeServer(functions[1], port=0) as second,
        GRPCComputeClient(book_of(first, second)) as client,
    ):
        for _ in range(10):
            client.compute(TOKEN)
        assert [function.num_calls for function in functions] == [5, 5]


def asked(observer: RecordingObserver, method: str = HEALTH_CHECK) -> int:
    return sum(call.method == method for call in observer.calls)


def test_a_step_asks_nobody_and_who_opens_much_asks_seldom() -> None:
    observer = RecordingObserver()
    with (
        GRPCComputeServer(RunningSumHost(), port=0, observer=observer) as first,
        GRPCComputeServer(RunningSumHost(), port=0) as second,
        GRPCComputeClient(book_of(first, second, max_age_s=1e6)) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def run(_: int) -> None:
            with client.session() as session:
                for _ in range(5):
                    session.step(TOKEN)

        list(pool.map(run, range(16)))
        assert asked(observer) == 1


def test_with_one_address_nobody_is_asked() -> None:
    observer = RecordingObserver()
    with GRPCComputeServer(RunningSumHost(), port=0, observer=observer) as server:
        for open_some in (opened, opened_async):
            open_some(AddressBook([server.address]), 3, lambda: None)
        with GRPCComputeClient(server.address) as client:
            client.compute(TOKEN)
    assert (asked(observer), asked(observer, COMPUTE)) == (0, 1)


PATIENT: dict[str, Any] = {"connect_timeout_s": 600.0, "dead_after_s": 600.0}


@pytest.fixture
def unheard() -> Iterator[tuple[AddressBook, Callable[[], None]]]:
    """Two servers that never answer, and what waits until both were asked."""
    with DroppingPeer() as one, DroppingPeer() as other:
        book = AddressBook([one.address, other.address], patience_s=600.0)
        yield book, lambda: eventually(lambda: bool(one.bytes_dropped and other.bytes_dropped))


def test_asking_ends_with_its_client(unheard: tuple[AddressBook, Callable[[], None]]) -> None:
    book, wait_until_asked = unheard
    with GRPCComputeClient(book, **PATIENT) as client, ThreadPoolExecutor(1) as pool:
        opening = pool.submit(client.session)
        wait_until_asked()
        client.close()
        with pytest.raises(ClientClosedError):
            opening.result(timeout=60)


def test_and_so_with_asyncio(unheard: tuple[AddressBook, Callable[[], None]]) -> None:
    book, wait_until_asked = unheard

    async def main() -> None:
        async with AsyncComputeClient(book, **PATIENT) as client:
            opening = asyncio.create_task(client.session().open())
            await asyncio.to_thread(wait_until_asked)
            await client.close()
            with pytest.raises(ClientClosedError):
                await opening

    asyncio.run(main())
