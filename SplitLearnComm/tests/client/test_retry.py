import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm.client import ExponentialBackoff, FixedDelay
from splitlearn_comm.client.deadline import Deadline
from splitlearn_comm.errors import InvalidRequestError, ServerUnavailableError


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
