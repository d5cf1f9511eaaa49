import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm.client import ExponentialBackoff, FixedDelay
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.errors import InvalidRequestError, ResourceExhaustedError, ServerUnavailableError


class Flaky:
    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures, self.calls = failures, 0
        self.error = error or ServerUnavailableError("away")

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"

    async def awaited(self) -> str:
        return self()


def test_delays_grow_to_the_maximum_and_end() -> None:
    backoff = ExponentialBackoff(initial_delay=1, max_delay=5, multiplier=2, max_attempts=5)
    assert [backoff.next_delay_s(attempt) for attempt in range(1, 6)] == [1, 2, 4, 5, None]
    assert [FixedDelay(3, max_attempts=2).next_delay_s(attempt) for attempt in (1, 2)] == [3, None]


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_jitter_stays_in_its_range(attempt: int, draw: float) -> None:
    backoff = ExponentialBackoff(0.1, 2.0, 2.0, max_attempts=10**7, jitter=0.5)
    delay_s, middle_s = backoff.next_delay_s(attempt, draw), backoff.next_delay_s(attempt)
    assert delay_s is not None
    assert middle_s is not None
    assert middle_s * 0.5 <= delay_s <= middle_s * 1.5


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (2, 3)])
def test_what_fails_at_first_is_tried_again(failures: int, calls: int) -> None:
    for run in (lambda f: FixedDelay(0).execute(f), lambda f: asyncio.run(FixedDelay(0).execute_async(f.awaited))):
        flaky = Flaky(failures)
        assert run(flaky) == "answer"
        assert flaky.calls == calls


def test_it_ends_with_the_last_error() -> None:
    flaky = Flaky(9)
    with pytest.raises(ServerUnavailableError, match="away"):
        FixedDelay(0, max_attempts=3).execute(flaky)
    assert flaky.calls == 3


def test_what_would_fail_again_is_not_tried_again() -> None:
    flaky = Flaky(9, InvalidRequestError("wrong"))
    with pytest.raises(InvalidRequestError):
        FixedDelay(0).execute(flaky)
    assert flaky.calls == 1


def test_no_wait_goes_past_the_deadline() -> None:
    flaky = Flaky(9)
    with pytest.raises(ServerUnavailableError):
        FixedDelay(60).execute(flaky, Deadline.after(1))
    assert flaky.calls == 1


def busy(told_s: float) -> ResourceExhaustedError:
    return ResourceExhaustedError("busy", retry_after_s=told_s)


def test_those_who_were_told_the_same_come_back_at_different_times() -> None:
    delays_s = sorted(FixedDelay().delay_after(busy(2.0), 1, Deadline.after(60)) for _ in range(200))
    assert delays_s[0] >= 2.0
    assert delays_s[-1] < 4.0
    assert delays_s[0] < 2.5 < 3.5 < delays_s[-1]


def test_a_wait_that_would_only_fit_unspread_is_as_long_as_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.9)
    assert FixedDelay().delay_after(busy(20.0), 1, Deadline.after(30)) == 20.0
    with pytest.raises(ResourceExhaustedError):
        FixedDelay().delay_after(busy(40.0), 1, Deadline.after(30))


def test_being_told_to_wait_is_no_attempt_that_failed() -> None:
    for run in (
        lambda f: FixedDelay(0, max_attempts=2).execute(f, Deadline.after(60)),
        lambda f: asyncio.run(FixedDelay(0, max_attempts=2).execute_async(f.awaited, Deadline.after(60))),
    ):
        flaky = Flaky(9, busy(0.001))
        assert run(flaky) == "answer"
        assert flaky.calls == 10


@pytest.mark.parametrize(("max_attempts", "timeout_s"), [(1, 60.0), (3, None)])
def test_without_another_attempt_or_a_deadline_it_is_one(max_attempts: int, timeout_s: float | None) -> None:
    flaky = Flaky(9, busy(0.001))
    with pytest.raises(ResourceExhaustedError):
        FixedDelay(0, max_attempts).execute(flaky, timeout_s and Deadline.after(timeout_s))
    assert flaky.calls == max_attempts


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialBackoff(initial_delay=-1),
        lambda: ExponentialBackoff(multiplier=0.5),
        lambda: ExponentialBackoff(jitter=2),
        lambda: ExponentialBackoff(max_attempts=0),
        lambda: FixedDelay(-1),
        lambda: FixedDelay(max_attempts=0),
    ],
)
def test_strategies_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()  # type: ignore[operator]
