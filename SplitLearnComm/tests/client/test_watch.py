import threading
import time
from collections.abc import Iterator

import pytest

from splitlearn_comm.client.watch import DeadlineWatch


class Waiter:
    def __init__(self) -> None:
        self.due_at_s = float("inf")
        self.given_up, self.closed = threading.Event(), threading.Event()

    def give_up(self) -> None:
        self.given_up.set()

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def watch() -> Iterator[DeadlineWatch]:
    watch = DeadlineWatch()
    yield watch
    watch.close()


def test_the_earlier_deadline_comes_first_even_if_it_began_later(watch: DeadlineWatch) -> None:
    patient, hasty = Waiter(), Waiter()
    for waiter, timeout_s in ((patient, 3600), (hasty, 0.01)):
        watch.add(waiter)
        watch.begin(waiter, time.monotonic() + timeout_s)
    assert hasty.given_up.wait(20)
    assert not patient.given_up.is_set()


def test_one_waiter_may_wait_many_times(watch: DeadlineWatch) -> None:
    waiter = Waiter()
    watch.add(waiter)
    for _ in range(20):
        waiter.given_up.clear()
        watch.begin(waiter, time.monotonic() + 0.001)
        assert waiter.given_up.wait(20)


def test_an_answer_in_time_and_a_waiter_removed_are_left_alone(watch: DeadlineWatch) -> None:
    answered, removed, last = Waiter(), Waiter(), Waiter()
    for waiter in (answered, removed, last):
        watch.add(waiter)
        watch.begin(waiter, time.monotonic() + 0.7)
    answered.due_at_s = float("inf")
    watch.remove(removed)
    assert last.given_up.wait(20)
    assert not answered.given_up.is_set()
    assert not removed.given_up.is_set()


def test_closing_closes_what_is_watched() -> None:
    watch, waiter = DeadlineWatch(), Waiter()
    watch.add(waiter)
    watch.close()
    assert waiter.closed.is_set()
