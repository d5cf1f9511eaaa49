"""Clients that send recorded hidden states and compute nothing, in processes of their own, and their parent's hand.

Sessions may all be of one client, as machines behind one address are, or each of a client of its own, by token.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection

import torch

from benchmarks.processes import NUM_THREADS
from splitlearn_comm import ClientSession, GRPCComputeClient

MAX_SESSIONS = 16
LONGEST_PROMPT = 2000
HIDDEN_SIZE = 768

Times = list[tuple[float, float]]
"""When each step of a session began and ended, on a clock that all processes share."""


def be_clients(parent: Connection, *, address: str, tokens: Sequence[str] = ()) -> None:
    """Do what the parent says with sessions of this process, each on a thread, until the process is ended.

    ("open", sessions, tokens) opens sessions and sends their prompts; ("step", times) steps all and sends for each the
    seconds of every step; ("close",) closes them; ("prompt", tokens) sends one prompt on a session of its own.

    Args:
        parent: says what to do.
        address: of the server.
        tokens: of the clients that the sessions belong to, in turn; none for one client without a token.
    """
    torch.set_num_threads(NUM_THREADS)
    generator = torch.Generator().manual_seed(1)
    token = torch.randn(1, 1, HIDDEN_SIZE, generator=generator)
    prompt = torch.randn(1, LONGEST_PROMPT, HIDDEN_SIZE, generator=generator)
    sessions: list[ClientSession] = []

    def begin(index: int, num_tokens: int) -> ClientSession:
        session = clients[index % len(clients)].session()
        session.step(prompt[:, :num_tokens])
        return session

    with ExitStack() as stack, ThreadPoolExecutor(MAX_SESSIONS) as pool:
        clients = [stack.enter_context(GRPCComputeClient(address, token=each)) for each in tokens or (None,)]
        while True:
            match parent.recv():
                case ("open", num_sessions, num_tokens):
                    sessions = list(pool.map(partial(begin, num_tokens=num_tokens), range(num_sessions)))
                    parent.send(None)
                case ("step", num_steps):
                    parent.send(list(pool.map(partial(times_of, token, num_steps), sessions)))
                case ("close",):
                    for session in sessions:
                        session.close()
                    parent.send(None)
                case ("prompt", num_tokens):
                    began_s = time.perf_counter()
                    begin(0, num_tokens).close()
                    parent.send(time.perf_counter() - began_s)


def times_of(token: torch.Tensor, num_steps: int, session: ClientSession) -> Times:
    """Step a session; return when each step began and ended."""
    times = []
    for _ in range(num_steps):
        began_s = time.perf_counter()
        session.step(token)
        times.append((began_s, time.perf_counter()))
    return times


class Clients:
    """The client processes, told what to do together."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def open(self, num_sessions: int, num_tokens: int) -> None:
        """Open so many sessions in all, each with a prompt."""
        self._each([("open", share, num_tokens) for share in shares(num_sessions, len(self._pipes))])

    def step(self, num_steps: int) -> list[Times]:
        """Step all; return the times of each session."""
        return [times for share in self._each([("step", num_steps)] * len(self._pipes)) for times in share]

    def close(self) -> None:
        """Close all sessions."""
        self._each([("close",)] * len(self._pipes))

    def _each(self, messages: list[tuple[object, ...]]) -> list[list[Times]]:
        for pipe, message in zip(self._pipes, messages, strict=True):
            pipe.send(message)
        return [pipe.recv() for pipe in self._pipes]


@contextmanager
def stepping(clients: Clients, num_sessions: int, prompt_len: int, num_steps: int) -> Iterator[Callable[[], float]]:
    """Yield what measures sessions: each time they go on for so many steps; in steps of all of them per second."""
    clients.open(num_sessions, prompt_len)
    try:
        yield lambda: steps_per_s(clients.step(num_steps))
    finally:
        clients.close()


def shares(total: int, parts: int) -> list[int]:
    """Return how a number is shared out."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def steps_per_s(times: list[Times]) -> float:
    """Return the steps of all sessions per second."""
    began_s = min(session[0][0] for session in times)
    ended_s = max(session[-1][1] for session in times)
    return sum(map(len, times)) / (ended_s - began_s)


def lasted(times: list[Times]) -> list[float]:
    """Return how long each step took."""
    return [ended_s - began_s for session in times for began_s, ended_s in session]
