import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm.server import ClientLimits
from splitlearn_comm.server.security.limits import TokenBucket

REQUESTS = st.lists(st.tuples(st.floats(0, 2), st.floats(0, 50)), max_size=60)
RATES = st.floats(0.5, 100)


@given(requests=REQUESTS, rate=RATES, burst=RATES)
def test_no_more_is_granted_than_was_saved_up_and_came_in_and_one_more(
    requests: list[tuple[float, float]], rate: float, burst: float
) -> None:
    bucket, now, granted = TokenBucket(rate, burst, 0.0), 0.0, 0.0
    for pause_s, amount in requests:
        now += pause_s
        if bucket.wait_s(now) == 0.0:
            bucket.take(amount)
            granted += amount
        assert granted <= burst + rate * now + 50 + 1e-6


@given(requests=REQUESTS, rate=RATES, burst=RATES)
def test_who_waits_as_long_as_told_is_granted_something_and_not_earlier(
    requests: list[tuple[float, float]], rate: float, burst: float
) -> None:
    bucket, now = TokenBucket(rate, burst, 0.0), 0.0
    for pause_s, amount in requests:
        now += pause_s
        if wait_s := bucket.wait_s(now):
            assert bucket.wait_s(now + wait_s * 0.99 - 1e-9) > 0
            now += wait_s + 1e-6
            assert bucket.wait_s(now) == 0.0
        bucket.take(amount)


@given(times=st.lists(st.floats(0, 1e6), max_size=40), rate=RATES)
def test_who_keeps_to_the_rate_never_waits(times: list[float], rate: float) -> None:
    bucket, now = TokenBucket(rate, 1.0, 0.0), 0.0
    for pause_s in times:
        now += pause_s + 1 / rate + 1e-6
        assert bucket.wait_s(now) == 0.0
        bucket.take(1.0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(1.0, 1.0, 100.0)
    bucket.take(2.0)
    assert bucket.wait_s(50.0) == 1.0
    assert bucket.wait_s(50.5) == 0.5


@pytest.mark.parametrize("name", ["max_sessions", "max_calls", "requests_per_s", "bytes_per_s", "max_bytes_held"])
def test_each_limit_is_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"client_limits.{name} must be greater than zero, came 0"):
        ClientLimits(**{name: 0})
