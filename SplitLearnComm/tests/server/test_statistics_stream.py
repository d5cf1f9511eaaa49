"""The stream of a server's figures, as both kinds of client get it."""

import asyncio
import hashlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from splitlearn_comm import (
    AddressBook,
    AsyncComputeClient,
    AuthenticationError,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    RemoteInternalError,
    Sample,
    ServerUnavailableError,
    StatisticsReading,
    TokenFile,
    UnsupportedOperationError,
)
from splitlearn_comm.testing import RunningSumHost

NAME = "splitlearn_looks_total"


class Source:
    """Counts how often somebody looked."""

    def __init__(self) -> None:
        self.num_looks = 0

    def __call__(self) -> Iterator[Sample]:
        self.num_looks += 1
        yield Sample(NAME, {"model": "a", "thread": threading.current_thread().name}, self.num_looks)
        yield Sample(NAME, {"model": "b", "thread": ""}, 0.5)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source) -> Iterator[GRPCComputeServer]:
    with GRPCComputeServer(RunningSumHost(), port=0, samples=source) as server:
        yield server


def test_figures_come_at_once_and_after_each_interval(server: GRPCComputeServer, source: Source) -> None:
    with GRPCComputeClient(server.address) as client, closing(client.watch_statistics(1.0)) as readings:
        first, second = itertools.islice(readings, 2)
    assert (first.value(NAME, model="a"), second.value(NAME, model="a")) == (1, 2)
    assert first.value(NAME) == 1.5
    assert first.value("splitlearn_other") is None
    assert 0.9 < second.time_s - first.time_s < 10
    assert source.num_looks == 2


def test_they_are_read_beside_the_loop_that_serves(server: GRPCComputeServer) -> None:
    with GRPCComputeClient(server.address) as client, closing(client.watch_statistics(60)) as readings:
        assert "splitlearn-server" not in next(readings).samples[0].labels["thread"]


def test_asyncio_clients_get_the_same(server: GRPCComputeServer) -> None:
    async def watch() -> StatisticsReading:
        async with AsyncComputeClient(server.address) as client:
            async for reading in client.watch_statistics(60):
                return reading
        raise AssertionError("nothing came")

    assert asyncio.run(watch()).value(NAME, model="b") == 0.5


@pytest.mark.parametrize("interval_s", [0.0, 0.999, 60.001, -1, float("nan"), float("inf")])
def test_an_interval_has_from_one_to_sixty_seconds(server: GRPCComputeServer, interval_s: float) -> None:
    with GRPCComputeClient(server.address) as client, pytest.raises(InvalidRequestError, match="every 1 to 60 s"):
        next(client.watch_statistics(interval_s))


def test_a_server_without_figures_says_so(sum_server: GRPCComputeServer) -> None:
    with GRPCComputeClient(sum_server.address) as client, pytest.raises(UnsupportedOperationError, match="no stat"):
        next(client.watch_statistics())


def test_a_source_that_fails_tells_nothing_of_why() -> None:
    def fail() -> list[Sample]:
        raise RuntimeError("secret")

    with (
        GRPCComputeServer(RunningSumHost(), port=0, samples=fail) as server,
        GRPCComputeClient(server.address) as client,
        pytest.raises(RemoteInternalError, match="request id") as raised,
    ):
        next(client.watch_statistics())
    assert "secret" not in str(raised.value)


def test_the_stream_ends_when_the_server_stops_and_does_not_keep_it(source: Source) -> None:
    server = GRPCComputeServer(RunningSumHost(), port=0, samples=source, config=GRPCServerConfig(drain_timeout_s=60.0))
    server.start(block=False)
    with GRPCComputeClient(server.address) as client:
        readings = client.watch_statistics(60)
        next(readings)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(ServerUnavailableError):
            next(readings)
        stopping.join(20)
        assert not stopping.is_alive()


def test_the_first_server_that_can_be_reached_is_watched(server: GRPCComputeServer) -> None:
    addresses = ["127.0.0.1:1", server.address]
    with (
        GRPCComputeClient(AddressBook(addresses, in_order=True)) as client,
        closing(client.watch_statistics(60)) as readings,
    ):
        assert next(readings).value(NAME, model="b") == 0.5


def test_nobody_watches_without_a_token(source: Source) -> None:
    config = GRPCServerConfig(tokens={"alice": "a" * 32})
    with GRPCComputeServer(RunningSumHost(), port=0, samples=source, config=config) as server:
        with GRPCComputeClient(server.address) as client, pytest.raises(AuthenticationError):
            next(client.watch_statistics())
        with GRPCComputeClient(server.address, token="a" * 32) as client:
            assert next(client.watch_statistics()).samples


def test_the_stream_of_a_token_that_was_taken_out_ends(source: Source, tmp_path: Path) -> None:
    token, file = "a" * 32, tmp_path / "tokens"
    digest = hashlib.sha256(token.encode()).hexdigest()
    file.write_text(f"alice:sha256:{digest}\n")
    file.chmod(0o600)
    config = GRPCServerConfig(tokens=TokenFile(file))
    with (
        GRPCComputeServer(RunningSumHost(), port=0, samples=source, config=config) as server,
        GRPCComputeClient(server.address, token=token) as client,
    ):
        readings = client.watch_statistics(1)
        next(readings)
        file.write_text(f"bob:sha256:{digest[::-1]}\n")
        with pytest.raises(AuthenticationError):
            for _ in itertools.islice(readings, 20):
                pass
