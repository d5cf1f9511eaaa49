"""Two servers behind one reverse proxy, nginx or HAProxy, as ops/ configures them: to clients it is one address."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from splitlearn import SplitModelForCausalLM
from splitlearn_comm import AddressBook, GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.client import ExponentialBackoff
from splitlearn_comm.testing import CuttableProxy, RunningSumHost, ServerProcess
from splitlearn_core.builtin import builtin_directory
from splitlearn_manager import ManagedServer, ServerConfig
from tests.end_to_end.test_failover import NEW_TOKENS, At, generated
from tests.support.reverse_proxy import COMMANDS, reverse_proxy

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

proxies = pytest.mark.parametrize(
    "proxy",
    [
        pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed"))
        for name in COMMANDS
    ],
)
NUM_SESSIONS = 7
"""Odd: taken in turn, streams that come back would meet the other of two servers."""
HIDDEN = torch.ones(1, 40, 4)
SUMS = HIDDEN.cumsum(1)
STUBBORN = ExponentialBackoff(max_attempts=20, max_delay=0.5)
PATIENT = ServerConfig(drain_timeout_s=60, drain_idle_timeout_s=60)


def several(address: str) -> AddressBook:
    return AddressBook([address], is_proxy=True)


Going = Iterator[tuple[str, Callable[[], object]]]


@contextmanager
def stopping() -> Going:
    """The address of a server, and what stops it."""
    with GRPCComputeServer(RunningSumHost(), port=0) as server:
        yield server.address, server.stop


@contextmanager
def killing() -> Going:
    """The address of a server, and what kills it."""
    with ServerProcess("splitlearn_comm.testing:RunningSumHost") as process:
        yield process.address, process.kill


@pytest.fixture(scope="module")
def whole() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(builtin_directory())
    return model


@proxies
def test_generations_leave_a_server_that_stops_with_their_state(
    proxy: str, whole: PreTrainedModel, tmp_path: Path
) -> None:
    """Through the same address each finds the other server: no token is another, and none is computed twice."""
    expected = generated(whole)
    first = ManagedServer("builtin", port=0, config=PATIENT)
    first.start(block=False)
    with (
        ManagedServer("builtin", port=0, config=PATIENT) as second,
        reverse_proxy(proxy, [first.address, second.address], tmp_path) as address,
        ThreadPoolExecutor(5) as pool,
    ):
        models = [SplitModelForCausalLM.from_pretrained("builtin", trunk=several(address)) for _ in range(4)]
        half_way, may_go_on = threading.Barrier(5), threading.Event()

        def run(model: Any) -> torch.Tensor:
            return generated(model, At(NEW_TOKENS // 2, lambda: (half_way.wait(), may_go_on.wait())))

        outputs = [pool.submit(run, model) for model in models]
        half_way.wait()
        stopping = pool.submit(first.stop)
        may_go_on.set()
        assert all(torch.equal(output.result(), expected) for output in outputs)
        stopping.result()
        assert first.statistics().steps + second.statistics().steps == 4 * NEW_TOKENS
        # Stateless, at the one that is left.
        with torch.no_grad():
            logits = models[0](expected, use_cache=False).logits
            assert torch.allclose(logits, whole(expected, use_cache=False).logits, atol=1e-4)


@proxies
def test_a_stream_that_comes_back_comes_to_where_its_session_is(proxy: str, tmp_path: Path) -> None:
    with (
        GRPCComputeServer(RunningSumHost(), port=0) as first,
        GRPCComputeServer(RunningSumHost(), port=0) as second,
        reverse_proxy(proxy, [first.address, second.address], tmp_path) as address,
        CuttableProxy(address) as link,
        GRPCComputeClient(several(link.address)) as client,
    ):
        sessions = [client.session() for _ in range(NUM_SESSIONS)]
        for index in range(0, 40, 8):
            for session in sessions:
                assert torch.equal(session.step(HIDDEN[:, index : index + 8]), SUMS[:, index : index + 8])
            link.cut()
        counted = client.statistics()
        assert (counted.failovers, counted.moves) == (0, 0)
        assert counted.retries >= NUM_SESSIONS
        assert first.statistics().sessions_opened + second.statistics().sessions_opened == NUM_SESSIONS


@proxies
@pytest.mark.parametrize(
    ("book", "going"),
    [(several, stopping), (str, stopping), (str, killing)],
    ids=["stopped", "stopped, and nobody knows of another", "killed"],
)
def test_nothing_is_lost_when_one_of_them_goes(proxy: str, book: Any, going: Any, tmp_path: Path) -> None:
    """Idle sessions, busy ones and new ones, and calls; rebuilt, where they could not move."""
    with (
        going() as (first, end),
        GRPCComputeServer(RunningSumHost(), port=0) as second,
        reverse_proxy(proxy, [first, second.address], tmp_path) as address,
        GRPCComputeClient(book(address), connect_timeout_s=60, retry=STUBBORN) as client,
        ThreadPoolExecutor(NUM_SESSIONS) as pool,
    ):
        half_way, has_gone = threading.Barrier(NUM_SESSIONS + 1), threading.Event()

        def run(number: int) -> bool:
            with client.session() as session:
                outputs = [session.step(HIDDEN[:, :20])]
                half_way.wait()
                if number % 2:
                    has_gone.wait()
                outputs += [session.step(HIDDEN[:, index : index + 1]) for index in range(20, 40)]
                return torch.equal(torch.cat(outputs, dim=1), SUMS)

        running = [pool.submit(run, number) for number in range(NUM_SESSIONS)]
        half_way.wait()
        end()
        has_gone.set()
        assert all(session.result() for session in running)
        for _ in range(NUM_SESSIONS):
            assert torch.equal(client.compute(HIDDEN), SUMS)
            with client.session() as session:
                assert torch.equal(session.step(HIDDEN), SUMS)
