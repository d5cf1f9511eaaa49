"""The synchronous client against servers in other processes, some of which do not live long."""

import socket
import threading
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    DeadlineExceededError,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    MessageTooLargeError,
    ServerUnavailableError,
    SessionNotFoundError,
    UnsupportedOperationError,
)
from splitlearn_comm.client import FixedDelay
from splitlearn_comm.quickstart import Client
from splitlearn_comm.testing import CuttableProxy, Gated, Identity, RunningSumHost, ServerProcess, Tenfold, eventually

TOKEN = torch.ones(1, 1, 4)
SUMS = "splitlearn_comm.testing:RunningSumHost"


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_session_in_another_process(sums: str) -> None:
    hidden = torch.randn(2, 5, 4)
    with Client(sums) as client, client.session() as session:
        session.start_recording()
        first = session.step(hidden[:, :3])
        session.step(torch.randn(2, 2, 4))
        session.crop(2)
        second = session.step(hidden[:, 3:])
        assert torch.equal(torch.cat((first, second), dim=1), hidden.cumsum(1))
        session.reorder(torch.tensor([1, 1, 0]))
        assert session.step(torch.zeros(3, 1, 4)).shape == (3, 1, 4)
        assert session.position == 6
        session.crop(0)
        for negative in (-1, -6):
            with pytest.raises(InvalidRequestError, match=f"came {negative}"):
                session.crop(negative)
    session.close()
    with pytest.raises(SessionNotFoundError, match="closed here"):
        session.step(TOKEN)


def test_eight_threads_with_sessions_of_their_own(sums: str) -> None:
    def generate(seed: int) -> bool:
        hidden = torch.full((1, 20, 4), float(seed))
        with client.session() as session:
            steps = [session.step(hidden[:, index : index + 1]) for index in range(20)]
        return torch.equal(torch.cat(steps, dim=1), hidden.cumsum(1)) and torch.equal(
            client.compute(hidden), hidden.cumsum(1)
        )

    with Client(sums) as client, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(generate, range(8)))


def test_one_session_is_for_one_thread_at_a_time() -> None:
    function = Gated()
    with GRPCComputeServer(function, port=0) as server, Client(server.address) as client:
        session = client.session()
        with ThreadPoolExecutor(1) as pool:
            step = pool.submit(session.step, TOKEN)
            function.entered.acquire()
            with pytest.raises(RuntimeError, match="two threads"):
                session.step(TOKEN)
            function.gate.set()
            assert torch.equal(step.result(), TOKEN)


def test_nothing_listens() -> None:
    address = free_address()
    with Client(address) as client:
        for attempt in (lambda: client.compute(TOKEN), client.session, client.health, client.get_info):
            with pytest.raises(ServerUnavailableError, match=f"nothing listens at {address}") as caught:
                attempt()
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(caught.value, ConnectionError)


def test_a_server_killed_between_two_steps() -> None:
    with ServerProcess(SUMS) as process, Client(process.address) as client, client.session() as session:
        session.step(TOKEN)
        process.kill()
        with pytest.raises(ServerUnavailableError, match=r"lost in the middle of session .* at position 1, .* again"):
            session.step(TOKEN)
        with pytest.raises(ServerUnavailableError, match="lost in the middle"):
            session.step(TOKEN)


@pytest.mark.slow
def test_a_server_killed_while_a_step_is_waited_for() -> None:
    with ServerProcess("splitlearn_comm.testing:Gated") as process, Client(process.address) as client:
        session = client.session()
        with ThreadPoolExecutor(1) as pool:
            step = pool.submit(session.step, TOKEN)
            futures.wait([step], timeout=0.2)
            process.kill()
            with pytest.raises(ServerUnavailableError, match="lost in the middle"):
                step.result()
        session.close()


@pytest.mark.slow
def test_a_server_started_again_does_not_know_the_session() -> None:
    with ServerProcess(SUMS) as first, Client(first.address, replay_bytes=0) as client, client.session() as session:
        session.step(TOKEN)
        first.kill()
        with GRPCComputeServer(RunningSumHost(), port=int(first.address.rpartition(":")[2])):
            with pytest.raises(SessionNotFoundError, match="started again since; open a new session"):
                session.step(TOKEN)
            with client.session() as another:
                assert torch.equal(another.step(TOKEN), TOKEN)


def test_a_connection_that_is_cut_is_made_again(sum_server: GRPCComputeServer) -> None:
    with CuttableProxy(sum_server.address) as proxy, Client(proxy.address) as client, client.session() as session:
        for expected in range(1, 5):
            assert session.step(TOKEN)[0, 0, 0] == expected
            proxy.cut()
        assert sum_server.statistics().sessions_opened == 1


def test_an_answer_lost_on_the_way_is_asked_for_again(sum_server: GRPCComputeServer) -> None:
    with CuttableProxy(sum_server.address) as proxy, Client(proxy.address) as client, client.session() as session:
        session.step(TOKEN)
        proxy.swallow_answers()
        with ThreadPoolExecutor(1) as pool:
            step = pool.submit(session.step, TOKEN)
            eventually(lambda: sum_server.statistics().steps == 2)
            assert not step.done()
            proxy.cut()
            assert step.result()[0, 0, 0] == 2
        statistics = sum_server.statistics()
        assert (statistics.steps, statistics.replays) == (2, 1)
        assert session.step(TOKEN)[0, 0, 0] == 3


def test_no_answer_in_time() -> None:
    function = Gated()
    with GRPCComputeServer(function, port=0) as server, Client(server.address) as client:
        session = client.session()
        for attempt in (client.compute, session.step):
            with pytest.raises(DeadlineExceededError, match=r"within 0.2 s.* timeout_s") as caught:
                attempt(TOKEN, timeout_s=0.2)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(DeadlineExceededError, match="is over"):
            session.step(TOKEN)
        function.gate.set()
        with client.session() as another:
            assert torch.equal(another.step(TOKEN, timeout_s=60), TOKEN)
        session.close()


def test_a_message_over_the_limit_is_not_sent(sum_server: GRPCComputeServer) -> None:
    large = torch.ones(1, 64, 4)
    with GRPCComputeClient(sum_server.address, max_message_bytes=1000) as client:
        session = client.session()
        received = sum_server.statistics().bytes_received
        for attempt in (client.compute, session.step):
            with pytest.raises(MessageTooLargeError, match=r"has 10\d\d bytes and the limit is 1000; nothing was sent"):
                attempt(large)
        assert sum_server.statistics().bytes_received == received
        session.step(TOKEN)
        session.close()


def test_the_limit_of_the_server_counts_too() -> None:
    config = GRPCServerConfig(max_message_bytes=1000)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server, Client(server.address) as client:
        large = torch.ones(1, 64, 4)
        with pytest.raises(MessageTooLargeError, match=r"larger than max .*raise max_message_bytes"):
            client.compute(large)
        with client.session() as session, pytest.raises(MessageTooLargeError, match="nothing was sent"):
            session.step(large)
        client.get_info()
        with pytest.raises(MessageTooLargeError, match="nothing was sent"):
            client.compute(large)
        assert client.compute(TOKEN).shape == TOKEN.shape


def test_an_answer_over_the_limit_of_the_client() -> None:
    with (
        GRPCComputeServer(Tenfold(), port=0) as server,
        GRPCComputeClient(server.address, max_message_bytes=1000) as client,
    ):
        session = client.session()
        for attempt in (client.compute, session.step):
            with pytest.raises(MessageTooLargeError, match="larger than max"):
                attempt(torch.ones(1, 100))
        assert client.compute(TOKEN).shape == (10, 1, 4)
        session.close()


def test_what_listens_is_something_else() -> None:
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with Client(f"127.0.0.1:{port}") as client:
        for attempt in (lambda: client.compute(TOKEN), client.session):
            with pytest.raises(UnsupportedOperationError, match=r"does not serve splitlearn.v1.ComputeService"):
                attempt()
    other.stop(None).wait()


def test_calls_are_retried_until_the_server_is_there() -> None:
    address = free_address()
    with GRPCComputeClient(address, retry=FixedDelay(0.1, max_attempts=200)) as client, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(client.compute, TOKEN), pool.submit(lambda: client.session().step(TOKEN))]
        futures.wait(answers, timeout=0.3)
        with GRPCComputeServer(Identity(), port=int(address.rpartition(":")[2])):
            assert all(torch.equal(answer.result(), TOKEN) for answer in answers)


def test_closing_works_at_any_time(sums: str) -> None:
    threads = threading.active_count()
    client = Client(sums)
    session = client.session()
    client.close()
    client.close()
    session.close()
    session.close()
    eventually(lambda: threading.active_count() <= threads)


def test_the_first_of_several_that_can_be_reached(sums: str) -> None:
    dead = [free_address(), free_address()]
    with Client(AddressBook([dead[0], sums], in_order=True)) as client:
        assert client.health()
        assert torch.equal(client.compute(TOKEN), TOKEN)
        with client.session() as session:
            assert torch.equal(session.step(TOKEN), TOKEN)
    with Client(dead) as client, pytest.raises(ServerUnavailableError, match="nothing listens at"):
        client.compute(TOKEN)


def test_addresses_are_checked() -> None:
    with pytest.raises(ValueError, match="no address"):
        Client([])
    with pytest.raises(ValueError, match="comes twice"):
        Client(["localhost:1", "localhost:2", "localhost:1"])


@pytest.mark.parametrize("name", ["timeout_s", "connect_timeout_s", "max_message_bytes", "dead_after_s"])
def test_limits_are_checked_once(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than zero"):
        GRPCComputeClient("127.0.0.1:1", **{name: 0})  # type: ignore[arg-type]
