"""Which server is asked, and when one is left alone: decisions without sockets or clocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm import ServerUnavailableError
from splitlearn_comm.client.breaker import CircuitBreaker, RetryBudget
from splitlearn_comm.client.history import History
from splitlearn_comm.client.replicas import ReplicaBook

GONE = ServerUnavailableError("nothing listens at a:1; is the server started?")


def test_a_breaker_opens_after_some_failures_in_a_row_and_stays_open_longer_each_time() -> None:
    breaker = CircuitBreaker(threshold=3, cool_down_s=1.0, max_cool_down_s=3.0)
    for now_s in (0.0, 1.0):
        breaker.failed(now_s)
        assert breaker.may_try(now_s)
    waits_s = []
    for now_s in (10.0, 20.0, 30.0, 40.0):
        breaker.failed(now_s)
        assert not breaker.may_try(now_s)
        waits_s.append(breaker.closed_at_s() - now_s)
        assert breaker.may_try(breaker.closed_at_s())
    assert waits_s == [1.0, 2.0, 3.0, 3.0]
    closed_at_s = breaker.closed_at_s()
    breaker.failed(closed_at_s - 0.1)  # others that were on their way when it opened
    assert breaker.closed_at_s() == closed_at_s


def test_one_answer_closes_a_breaker_and_begins_the_count_again() -> None:
    breaker = CircuitBreaker(threshold=2)
    breaker.failed(0.0)
    breaker.succeeded()
    breaker.failed(0.0)
    assert breaker.may_try(0.0)
    breaker.failed(0.0)
    assert not breaker.may_try(0.0)
    breaker.succeeded()
    assert breaker.may_try(0.0)


@given(st.lists(st.booleans(), max_size=300))
def test_a_budget_allows_retries_exactly_while_more_than_half_of_it_is_there(outcomes: list[bool]) -> None:
    budget, tokens = RetryBudget(), 100.0
    for has_succeeded in outcomes:
        (budget.succeeded if has_succeeded else budget.failed)()
        tokens = min(100.0, tokens + 1) if has_succeeded else max(0.0, tokens - 1)
        assert budget.may_retry() == (tokens > 50)


def test_the_order_is_that_of_the_addresses_until_one_fails() -> None:
    book = ReplicaBook(["a", "b", "c"])
    assert book.order(0.0) == ["a", "b", "c"]
    assert book.order(0.0, first="c") == ["c", "a", "b"]
    assert book.order(0.0, without="a") == ["b", "c"]
    book.failed("a", 0.0, GONE)
    assert book.order(0.0) == ["b", "c", "a"]
    assert book.order(0.0, first="a") == ["a", "b", "c"]
    book.succeeded("a")
    assert book.order(0.0) == ["a", "b", "c"]


def test_a_server_that_failed_often_is_left_out_for_a_while() -> None:
    book = ReplicaBook(["a", "b"])
    for _ in range(3):
        book.failed("a", 0.0, GONE)
    assert book.order(0.1) == ["b"]
    assert book.order(0.1, first="a") == ["b"]
    assert set(book.order(1.0)) == {"a", "b"}


def test_when_all_are_left_out_the_reason_and_the_time_are_said() -> None:
    book = ReplicaBook(["a:1"])
    for _ in range(3):
        book.failed("a:1", 0.0, GONE)
    with pytest.raises(ServerUnavailableError, match=r"nothing listens at a:1; .* for another 0\.2 s"):
        book.order(0.0)


def test_retries_end_when_every_server_has_used_up_its_budget() -> None:
    book = ReplicaBook(["a", "b"])
    for address in ("a", "b"):
        assert book.may_retry()
        for _ in range(60):
            book.failed(address, 0.0, GONE)
    assert not book.may_retry()


def test_a_history_keeps_what_fits_and_forgets_all_of_what_does_not() -> None:
    history = History(10)
    history.add(b"12345")
    history.add(b"67890")
    assert [*history] == [b"12345", b"67890"]
    assert history.is_complete
    history.add(b"1")
    assert not history.is_complete
    assert len(history) == 0
    history.add(b"2")
    assert len(history) == 0
    assert not History(0).is_complete
