"""The link between plain sockets. Times have lower bounds only: a busy machine is late, never early."""

import asyncio
import contextlib
import math
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from splitlearn_comm import GRPCComputeServer
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import Direction, LinkEmulator, LinkQuality, eventually

PATIENCE_S = 20.0


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes, until the end of it."""

    def handle(self) -> None:
        self.server.num_taken += 1  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)
            return
        self.server.num_reset += 1  # type: ignore[attr-defined]


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    num_taken = num_reset = 0

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def connected(link: LinkEmulator) -> socket.socket:
    host, _, port = link.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def received(client: socket.socket, num_bytes: float = math.inf) -> bytes:
    """So many bytes, or all until the end."""
    data = b""
    while len(data) < num_bytes and (more := client.recv(65536)):
        data += more
    return data


def received_before_reset(client: socket.socket) -> int:
    """How many bytes come until the connection is reset."""
    num_bytes = 0
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            num_bytes += len(data)
        raise AssertionError("the connection came to an end instead of being reset")
    return num_bytes


def round_trip_s(client: socket.socket, data: bytes = b"?") -> float:
    start_s = time.monotonic()
    client.sendall(data)
    assert received(client, len(data)) == data
    return time.monotonic() - start_s


def test_bytes_and_the_end_of_them_go_through_unchanged(echo: EchoServer) -> None:
    data = bytes(range(256)) * 4000
    with LinkEmulator(echo.at) as link, connected(link) as client:

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert received(client) == data
        sender.join()
        statistics = link.statistics()
        assert (statistics.bytes_to_server, statistics.bytes_to_client) == (len(data), len(data))
        assert statistics.connections == 1
        client.close()
        eventually(lambda: link.statistics().connections_open == 0)
        assert link.statistics().cuts == 0


def test_latency_is_paid_in_both_directions(echo: EchoServer) -> None:
    with LinkEmulator(echo.at, LinkQuality(latency_s=0.03)) as link, connected(link) as client:
        assert round_trip_s(client) >= 0.06


def test_each_direction_may_have_a_quality_of_its_own(echo: EchoServer) -> None:
    with (
        LinkEmulator(echo.at, LinkQuality(latency_s=0.01), to_client=LinkQuality(latency_s=0.04)) as link,
        connected(link) as client,
    ):
        assert round_trip_s(client) >= 0.05
        link.set_quality(LinkQuality(latency_s=0.08), Direction.TO_SERVER)
        assert round_trip_s(client) >= 0.12
        link.set_quality(LinkQuality(latency_s=0.02))
        assert round_trip_s(client) >= 0.04


def test_bandwidth_is_never_more_than_asked_for(echo: EchoServer) -> None:
    with LinkEmulator(echo.at, to_client=LinkQuality(bytes_per_s=1e6)) as link, connected(link) as client:
        assert round_trip_s(client, bytes(100_000)) >= 0.1


def test_connections_share_the_bandwidth(echo: EchoServer) -> None:
    data = bytes(50_000)
    with LinkEmulator(echo.at, LinkQuality(bytes_per_s=1e6), to_client=LinkQuality()) as link:
        clients = [connected(link) for _ in range(2)]
        start_s = time.monotonic()
        for client in clients:
            client.sendall(data)
        for client in clients:
            assert received(client, len(data)) == data
            client.close()
        assert time.monotonic() - start_s >= 0.1


def test_a_cut_is_a_reset_at_both_ends_and_new_connections_work(echo: EchoServer) -> None:
    with LinkEmulator(echo.at) as link, connected(link) as client:
        round_trip_s(client)
        link.cut()
        with pytest.raises(ConnectionResetError):
            received(client)
        eventually(lambda: echo.num_reset == 1)
        assert (link.statistics().cuts, link.statistics().connections_open) == (1, 0)
        with connected(link) as another:
            round_trip_s(another)


@pytest.mark.parametrize("num_bytes", [0, 1, 30_000])
def test_a_cut_after_so_many_bytes_lets_exactly_those_through(echo: EchoServer, num_bytes: int) -> None:
    with LinkEmulator(echo.at) as link, connected(link) as client:
        round_trip_s(client, b"before")
        link.cut_after(num_bytes, Direction.TO_CLIENT)
        client.sendall(bytes(100_000))
        assert received_before_reset(client) == num_bytes
        assert link.statistics().bytes_to_client == len(b"before") + num_bytes
        assert link.statistics().cuts == 1
        with connected(link) as another:
            round_trip_s(another, bytes(100_000))
        with pytest.raises(ValueError, match="0 or more, came -1"):
            link.cut_after(-1, Direction.TO_CLIENT)


@pytest.mark.parametrize("direction", [None, *Direction])
def test_a_stalled_link_is_silent_and_loses_nothing(echo: EchoServer, direction: Direction | None) -> None:
    with LinkEmulator(echo.at) as link, connected(link) as client:
        round_trip_s(client)
        link.stall(direction)
        client.sendall(b"held back")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        reached_server = link.statistics().bytes_to_server - 1
        assert reached_server == (len(b"held back") if direction is Direction.TO_CLIENT else 0)
        client.settimeout(PATIENCE_S)
        link.resume(direction)
        assert received(client, 9) == b"held back"


def test_what_is_underway_when_the_link_stalls_stays_there(echo: EchoServer) -> None:
    with LinkEmulator(echo.at, LinkQuality(latency_s=0.1)) as link, connected(link) as client:
        round_trip_s(client)
        client.sendall(b"!")
        for _ in range(5):
            link.resume()  # changes nothing; each lets the link look at its connections once
        link.stall()
        client.settimeout(0.4)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert link.statistics().bytes_to_server == 1
        link.resume()
        client.settimeout(PATIENCE_S)
        assert received(client, 1) == b"!"


def test_a_stalled_link_hides_that_the_other_side_is_gone(echo: EchoServer) -> None:
    with LinkEmulator(echo.at) as link:
        client = connected(link)
        round_trip_s(client)
        link.stall()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with connected(link) as another:
            another.settimeout(0.1)
            another.sendall(b"?")
            with pytest.raises(TimeoutError):
                another.recv(1)
            assert (echo.num_reset, link.statistics().connections_open) == (0, 2)
            link.resume()
            eventually(lambda: echo.num_reset == 1)


def test_refused_connections_and_the_same_address_afterwards(echo: EchoServer) -> None:
    with LinkEmulator(echo.at) as link, connected(link) as client:
        round_trip_s(client)
        address = link.address
        link.refuse()
        link.refuse()
        with pytest.raises(ConnectionRefusedError):
            connected(link)
        round_trip_s(client)
        link.accept()
        link.accept()
        assert link.address == address
        with connected(link) as another:
            round_trip_s(another)


def test_a_server_that_is_not_there_is_a_connection_that_breaks() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and never listens: nobody else, the emulator least of all, gets this port
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        # The reset may already be there when the connection is asked for.
        with LinkEmulator(address) as link, pytest.raises(ConnectionResetError), connected(link) as client:
            client.recv(1)


def test_what_is_underway_is_bounded_and_closing_does_not_wait_for_it(echo: EchoServer) -> None:
    piece, limit_bytes, sent_bytes = bytes(1024 * 1024), 256 * 1024 * 1024, 0
    start_s = time.monotonic()
    with (
        LinkEmulator(echo.at, LinkQuality(latency_s=3600), buffer_bytes=100_000) as link,
        connected(link) as client,
    ):
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while sent_bytes < limit_bytes:
                sent_bytes += client.send(piece)
    assert sent_bytes < limit_bytes
    assert time.monotonic() - start_s < 60
    link.close()


def test_unix_sockets_at_both_ends(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
        LinkEmulator(f"unix:{inner}", LinkQuality(latency_s=0.02), listen=f"unix:{outer}") as link,
    ):
        listener.bind(str(inner))
        listener.listen()
        assert link.address == f"unix:{outer}"
        client.connect(str(outer))
        start_s = time.monotonic()
        client.sendall(b"hello")
        server, _ = listener.accept()
        with server:
            assert server.recv(5) == b"hello"
            assert time.monotonic() - start_s >= 0.02
            link.cut()
            assert server.recv(1) == b""
    assert not outer.exists()


def test_a_server_on_the_event_loop_of_the_test() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def check() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with LinkEmulator(f"127.0.0.1:{port}", LinkQuality(latency_s=0.01)) as link:
                host, _, link_port = link.address.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(link_port))
                writer.write(b"hello\n")
                assert await reader.read() == b"hello\n"
                writer.close()
                await writer.wait_closed()

    asyncio.run(check())


def test_an_address_in_use_is_refused_and_leaves_no_thread(echo: EchoServer) -> None:
    num_threads = threading.active_count()
    with pytest.raises(OSError, match="in use"):
        LinkEmulator(echo.at, listen=echo.at)
    assert threading.active_count() == num_threads


def test_a_session_over_a_long_link_that_is_cut(sum_server: GRPCComputeServer) -> None:
    quality = LinkQuality(latency_s=0.005, jitter_s=0.005)
    with (
        LinkEmulator(sum_server.address, quality) as link,
        Client(link.address) as client,
        client.session() as session,
    ):
        for expected in range(1, 7):
            start_s = time.monotonic()
            assert session.step(torch.ones(1, 1, 4))[0, 0, 0] == expected
            assert time.monotonic() - start_s >= 0.01
            if expected % 2 == 0:
                link.cut()
        assert sum_server.statistics().sessions_opened == 1
        assert link.statistics().connections >= 3
