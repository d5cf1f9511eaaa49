"""Messages that make no sense: each refused with a right code, memory flat, good clients undisturbed."""

from collections import Counter
from collections.abc import Iterator
from queue import SimpleQueue

import grpc
import psutil
import pytest
import torch

from splitlearn_comm import CommError, Crop, GRPCComputeClient, StepOrderError
from splitlearn_comm.errors import CODES
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.protocol import COMPUTE, SESSION
from splitlearn_comm.testing import ServerProcess
from tests.support.malformed import KINDS, Malformed, malformed

RIGHT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
PROBE = 10**9
MOST_CHARACTERS = 1500


class Spoiler:
    """Sends malformed messages over one stream and by calls, and says with what each was refused."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._compute = channel.unary_unary(COMPUTE)
        self._session = channel.stream_stream(SESSION)
        self._num_opened = 0
        self._is_alive = True
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._connect()

    def send(self, message: Malformed) -> list[tuple[grpc.StatusCode, str]]:
        """Code and text of each refusal; empty if it was taken."""
        return self._send_call(message.call) if message.call else self._send_session(message.session)

    def close(self) -> None:
        self._outbox.put(None)

    def _send_call(self, data: bytes) -> list[tuple[grpc.StatusCode, str]]:
        try:
            self._compute(data, timeout=60)
        except grpc.RpcError as error:
            return [(error.code(), error.details())]
        return []

    def _send_session(self, messages: tuple[bytes, ...]) -> list[tuple[grpc.StatusCode, str]]:
        for message in messages:
            self._outbox.put(message)
        # Chunks have no answers, so the end of them is marked: a step that is never in turn.
        self._outbox.put(steps.encode_step(PROBE, 0, Crop(0)))
        answers = list(iter(self._answer_before_probe, None))
        refusals = [told(answer.error) for answer in answers if answer.error is not None]
        if len(refusals) < len(answers) or not self._is_alive:
            self._open()
        return refusals

    def _answer_before_probe(self) -> steps.Answer | None:
        answer = self._answer()
        if answer.step_id != PROBE:
            return answer
        self._is_alive = isinstance(answer.error, StepOrderError)
        return None

    def _open(self) -> None:
        """Open a fresh session: what was sent may have closed the one before, or moved it on."""
        self._num_opened += 1
        self._outbox.put(steps.encode_close())
        self._answer()
        self._outbox.put(steps.encode_open(steps.Open(f"spoiled-{self._num_opened}")))
        opened = self._answer()
        assert opened.error is None, opened.error

    def _connect(self) -> None:
        self._outbox.put(None)
        self._outbox = SimpleQueue()
        self._answers = self._session(iter(self._outbox.get, None))
        self._inbox = Inbox(1 << 20)
        self._open()

    def _answer(self) -> steps.Answer:
        answer = self._inbox.answer(next(self._answers))
        assert answer is not None
        return answer


def told(error: CommError) -> tuple[grpc.StatusCode, str]:
    return CODES[type(error)], str(error)


class GoodClient:
    """Makes a step now and then, and checks it to the bit."""

    def __init__(self, client: GRPCComputeClient) -> None:
        self._client = client
        self._generator = torch.Generator().manual_seed(2)

    def generate(self) -> None:
        """A session of five steps and a call."""
        inputs = torch.randn(2, 9, 4, generator=self._generator)
        with self._client.session() as session:
            outputs = [session.step(inputs[:, :5]), *(session.step(inputs[:, at : at + 1]) for at in range(5, 9))]
        assert torch.equal(
            torch.cat(outputs, dim=1), torch.cat([inputs[:, : at + 1].cumsum(1)[:, -1:] for at in range(9)], 1)
        )
        assert torch.equal(self._client.compute(inputs), inputs.cumsum(1))


@pytest.fixture
def process() -> Iterator[ServerProcess]:
    with ServerProcess("splitlearn_comm.testing:RunningSumHost", max_message_bytes=1 << 26) as process:
        yield process


def spoil(process: ServerProcess, count: int, memory_bytes: int) -> None:
    refused: Counter[str] = Counter()
    server = psutil.Process(process.pid)
    with grpc.insecure_channel(process.address) as channel, GRPCComputeClient(process.address) as client:
        spoiler, good = Spoiler(channel), GoodClient(client)
        for message in malformed(seed=1, count=count // 10):
            spoiler.send(message)
        good.generate()
        before_bytes = server.memory_info().rss
        for number, message in enumerate(malformed(seed=2, count=count)):
            answers = spoiler.send(message)
            assert answers or message.may_pass, f"{message} was taken"
            for code, text in answers:
                assert code in RIGHT_CODES, f"{message} was refused with {code}: {text}"
                assert len(text) < MOST_CHARACTERS, f"{message} was refused at length: {text[:200]}"
            refused[message.kind] += bool(answers)
            if number % 50 == 0:
                good.generate()
        grown_bytes = server.memory_info().rss - before_bytes
        spoiler.close()
    assert grown_bytes < memory_bytes, f"{count} messages left {grown_bytes} bytes behind"
    assert len(refused) == len(KINDS)
    assert all(number > count / len(KINDS) / 4 for number in refused.values()), refused


def test_each_is_refused_with_a_right_code(process: ServerProcess) -> None:
    spoil(process, 1000, 16 << 20)


@pytest.mark.faults
def test_ten_thousand_are_refused_and_leave_nothing_behind(process: ServerProcess) -> None:
    spoil(process, 10_000, 32 << 20)
