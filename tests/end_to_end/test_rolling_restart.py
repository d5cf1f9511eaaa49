"""Three servers are restarted one after the other while clients generate: nobody notices."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from splitlearn import SplitModelForCausalLM
from splitlearn_comm.testing import eventually
from splitlearn_core.builtin import builtin_directory
from tests.support.serve_processes import ServeProcesses, quiet_port

torch.set_num_threads(1)

PROMPT = torch.arange(3, 15).view(1, -1)
NUM_TOKENS = 16
PATIENT = {"SPLITLEARN_SERVER_DRAIN_TIMEOUT_S": "60", "SPLITLEARN_SERVER_DRAIN_IDLE_TIMEOUT_S": "60"}
"""A machine that stalls is not to make a server give up."""


def generated(model: PreTrainedModel) -> torch.Tensor:
    output = model.generate(PROMPT, max_new_tokens=NUM_TOKENS, do_sample=False)
    assert isinstance(output, torch.Tensor)
    return output


class GeneratingClient:
    """Generates the same again and again, on a thread of its own, and compares."""

    def __init__(self, addresses: list[str], expected: torch.Tensor) -> None:
        self.num_done = 0
        self.errors: list[str] = []
        self._model = SplitModelForCausalLM.from_pretrained("builtin", trunk=addresses)
        self._expected = expected
        self._may_end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._may_end.is_set():
            try:
                if not torch.equal(generated(self._model), self._expected):
                    self.errors.append("other tokens")
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            self.num_done += 1

    def end(self) -> None:
        self._may_end.set()
        self._thread.join()


@contextmanager
def generating(addresses: list[str], num_clients: int) -> Iterator[list[GeneratingClient]]:
    expected = generated(AutoModelForCausalLM.from_pretrained(builtin_directory()))
    clients: list[GeneratingClient] = []
    try:
        for _ in range(num_clients):
            clients.append(GeneratingClient(addresses, expected))
        yield clients
    finally:
        for client in clients:
            client.end()


def all_generate(clients: list[GeneratingClient]) -> None:
    """Wait until each client has begun and ended a generation since this was called."""
    wanted = [client.num_done + 2 for client in clients]
    eventually(
        lambda: all(client.num_done >= number for client, number in zip(clients, wanted, strict=True)),
        timeout_s=240,
    )


def restart_each(servers: ServeProcesses, ports: list[int], clients: list[GeneratingClient]) -> None:
    for port in ports:
        all_generate(clients)
        assert servers.end(port) == 0, servers.output(port)
        assert "Traceback" not in servers.output(port)
        all_generate(clients)
        servers.start(port)
        servers.wait_for(port)
    all_generate(clients)


def roll(directory: Path, *, num_clients: int, num_rounds: int) -> None:
    ports = [quiet_port() for _ in range(3)]
    with ServeProcesses(directory, PATIENT) as servers:
        for port in ports:
            servers.start(port)
        for port in ports:
            servers.wait_for(port)
        with generating([f"127.0.0.1:{port}" for port in ports], num_clients) as clients:
            for _ in range(num_rounds):
                restart_each(servers, ports, clients)
        assert [error for client in clients for error in client.errors] == []


@pytest.mark.slow
def test_nobody_notices_that_each_server_is_restarted(tmp_path: Path) -> None:
    roll(tmp_path, num_clients=3, num_rounds=1)


@pytest.mark.faults
def test_sixteen_clients_do_not_notice_that_each_server_is_restarted_three_times(tmp_path: Path) -> None:
    roll(tmp_path, num_clients=16, num_rounds=3)
