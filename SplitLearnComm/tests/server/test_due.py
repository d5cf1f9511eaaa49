"""A step whose client waits no more when its turn comes is not done."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import pytest
import torch

from splitlearn_comm import DeadlineExceededError, GRPCComputeClient, GRPCComputeServer
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import Forward
from splitlearn_comm.protocol import COMPUTE, SESSION
from splitlearn_comm.testing import Gated, RecordingObserver, eventually

TOKEN = torch.ones(1, 1, 4)
LONG = torch.ones(1, 1, 1024)
"""So many bytes that their arrival is seen."""
SHORT_S = 0.25


class CountingGate(Gated):
    """Waits for the gate, and counts what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return super().compute(tensor)


def asker(channel: grpc.Channel) -> Callable[[bytes], steps.Answer]:
    outbox: SimpleQueue[bytes | None] = SimpleQueue()
    inbox, answers = Inbox(1 << 20), channel.stream_stream(SESSION)(iter(outbox.get, None))

    def ask(message: bytes) -> steps.Answer:
        outbox.put(message)
        answer = inbox.answer(next(answers))
        assert answer is not None
        return answer

    return ask


def test_it_is_refused_and_the_session_is_as_before() -> None:
    function, observer = CountingGate(), RecordingObserver()
    with (
        GRPCComputeServer(function, port=0, observer=observer) as server,
        GRPCComputeClient(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(2) as pool,
    ):
        busy, ask = client.session(), asker(channel)
        ask(steps.encode_open(steps.Open("late")))
        first = pool.submit(busy.step, TOKEN)
        function.entered.acquire()
        step = steps.encode_step(1, 0, Forward(TOKEN))
        assert isinstance(step, bytes)
        received = server.statistics().bytes_received
        late = pool.submit(ask, steps.with_timeout(step, 0.05))
        eventually(lambda: server.statistics().bytes_received > received)
        with pytest.raises(DeadlineExceededError):
            client.compute(TOKEN, timeout_s=1.0)
        # The server hears a moment later that nobody waits.
        eventually(lambda: any(call.method == COMPUTE and call.summary for call in observer.calls))
        function.gate.set()
        assert torch.equal(first.result(), TOKEN)
        refusal = late.result().error
        assert isinstance(refusal, DeadlineExceededError)
        assert "before its turn came, and nothing was done" in str(refusal)
        assert function.num_calls == 1
        answer = ask(steps.with_timeout(step, 60.0))
        assert (answer.error, answer.step_id, answer.position) == (None, 1, 1)
        assert function.num_calls == 2


@pytest.mark.parametrize("timeout_s", [SHORT_S, None])
def test_a_client_that_gave_up_is_not_computed_for(timeout_s: float | None) -> None:
    function = CountingGate()
    with (
        GRPCComputeServer(function, port=0) as server,
        GRPCComputeClient(server.address, timeout_s=SHORT_S) as client,
        GRPCComputeClient(server.address) as patient,
        ThreadPoolExecutor(2) as pool,
    ):
        session = client.session()
        busy = pool.submit(patient.compute, TOKEN)
        function.entered.acquire()
        before = server.statistics().bytes_received
        late = pool.submit(session.step, LONG, timeout_s=timeout_s)
        eventually(lambda: late.done() or server.statistics().bytes_received - before >= LONG.nbytes)
        # The server counts from when the step came, which may be a while after its client began to.
        came_s = time.monotonic()
        eventually(lambda: late.done() and time.monotonic() > came_s + 2 * SHORT_S)
        assert isinstance(late.exception(), DeadlineExceededError)
        function.gate.set()
        busy.result()
        # In line behind the late step, if that came at all: on a busy machine its client may have given up before.
        patient.compute(TOKEN)
    assert function.num_calls == 2
