from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import pytest

from splitlearn_comm.server import loop


def test_threads_that_ask_for_the_loop_at_once_get_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_the_loop", cache(loop.LoopThread))  # as in a process that has none yet
    at_once = Barrier(16)

    def ask(_: int) -> loop.LoopThread:
        at_once.wait(timeout=20)
        return loop.server_loop()

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
