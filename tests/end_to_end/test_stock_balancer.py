"""A client that is none of ours: a plain gRPC channel to two servers, balanced by gRPC itself, one of which stops."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.testing import ServerProcess, eventually

SERVICE_CONFIG = Path(__file__).resolve().parents[2] / "ops" / "service_config.json"
ONES = np.ones(3, "<f4")
REQUEST = pb.ComputeRequest(tensor=pb.TensorData(data=ONES.tobytes(), shape=ONES.shape, dtype=pb.DTYPE_FLOAT32))
SAME, TENFOLD = ONES.nbytes, 10 * ONES.nbytes
"""How much comes back tells who has answered."""


class Callers:
    """Threads that call, one call after the other, until they are told to stop."""

    def __init__(self, channel: grpc.Channel, num_threads: int) -> None:
        self.answers: Counter[int] = Counter()
        self.errors: list[grpc.RpcError] = []
        self._call = channel.unary_unary(
            "/splitlearn.v1.ComputeService/Compute",
            pb.ComputeRequest.SerializeToString,
            pb.ComputeResponse.FromString,
        )
        self._lock = threading.Lock()
        self._may_stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_threads)]

    def _run(self) -> None:
        while not self._may_stop.is_set():
            try:
                answer = self._call(REQUEST, timeout=60, wait_for_ready=True)
            except grpc.RpcError as error:
                self.errors.append(error)
            else:
                with self._lock:
                    self.answers[len(answer.tensor.data)] += 1

    @contextmanager
    def calling(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._may_stop.set()
            for thread in self._threads:
                thread.join()


@pytest.mark.slow
def test_both_get_calls_and_none_fails_when_one_stops() -> None:
    with (
        ServerProcess("splitlearn_comm.testing:Identity") as staying,
        ServerProcess("splitlearn_comm.testing:Tenfold") as leaving,
        grpc.insecure_channel(
            f"ipv4:{staying.address},{leaving.address}", [("grpc.service_config", SERVICE_CONFIG.read_text())]
        ) as channel,
    ):
        callers = Callers(channel, num_threads=4)
        with callers.calling():
            eventually(lambda: min(callers.answers[SAME], callers.answers[TENFOLD]) > 20)
            assert leaving.interrupt() == 0
            before = callers.answers.copy()
            eventually(lambda: callers.answers[SAME] > before[SAME] + 20)
        assert callers.errors == []
        # What was answered while it stopped was counted a moment later.
        assert callers.answers[TENFOLD] <= before[TENFOLD] + 4
