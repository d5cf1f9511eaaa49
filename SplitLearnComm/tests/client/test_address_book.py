"""Which server is asked, and when one is left alone: decisions without sockets or clocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm import DeadlineExceededError, Load, ResourceExhaustedError, ServerUnavailableError
from splitlearn_comm.client import AddressBook
from splitlearn_comm.client.address_book import QUIET_S
from splitlearn_comm.client.breaker import CircuitBreaker, RetryBudget
from splitlearn_comm.client.history import History
from splitlearn_comm.messages import HealthReport

SERVED = HealthReport(serving=True, load=Load())
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
    book = AddressBook(["a:1", "b:1", "c:1"], in_order=True)
    assert book.order(0.0) == ["a:1", "b:1", "c:1"]
    assert book.order(0.0, first="c:1") == ["c:1", "a:1", "b:1"]
    assert book.order(0.0, without="a:1") == ["b:1", "c:1"]
    book.failed("a:1", 0.0, GONE)
    assert book.order(0.0) == ["b:1", "c:1", "a:1"]
    assert book.order(0.0, first="a:1") == ["a:1", "b:1", "c:1"]
    book.succeeded("a:1")
    assert book.order(0.0) == ["a:1", "b:1", "c:1"]


def test_a_server_that_failed_often_is_left_out_for_a_while() -> None:
    book = AddressBook(["a:1", "b:1"], in_order=True)
    for _ in range(3):
        book.failed("a:1", 0.0, GONE)
    assert book.order(0.1) == ["b:1"]
    assert book.order(0.1, first="a:1") == ["b:1"]
    assert set(book.order(1.0)) == {"a:1", "b:1"}


def test_when_all_are_left_out_the_reason_and_the_time_are_said() -> None:
    book = AddressBook(["a:1"], in_order=True)
    for _ in range(3):
        book.failed("a:1", 0.0, GONE)
    with pytest.raises(ServerUnavailableError, match=r"nothing listens at a:1; .* for another 0\.2 s"):
        book.order(0.0)


def test_retries_end_when_every_server_has_used_up_its_budget() -> None:
    book = AddressBook(["a:1", "b:1"], in_order=True)
    for address in ("a:1", "b:1"):
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


def loaded(**figures: int) -> HealthReport:
    return HealthReport(serving=True, load=Load(**figures))


def told(book: AddressBook, now_s: float = 0.0, **reports: HealthReport) -> AddressBook:
    """The book, once each of these servers, named without their port 1, has said how it is."""
    for host, health in reports.items():
        book.heard(f"{host}:1", "", health, now_s)
    return book


@pytest.mark.parametrize(
    "least",
    [
        {"a": loaded(steps=2, sessions=3), "b": loaded(steps=1, sessions=3)},
        {"a": loaded(sessions=4), "b": loaded(sessions=3)},
        {"a": loaded(kv_bytes=60, kv_limit_bytes=100), "b": loaded(kv_bytes=50, kv_limit_bytes=100)},
        {"a": loaded(kv_bytes=100, kv_limit_bytes=100), "b": loaded(sessions=1000, kv_bytes=9)},
        {"a": loaded(sessions=2, kv_bytes=50, kv_limit_bytes=100), "b": loaded(sessions=4)},
        {"a": HealthReport(serving=False), "b": loaded(sessions=1000)},
        {"a": loaded(sessions=1), "b": SERVED},
    ],
    ids=["steps", "sessions", "caches", "full", "half full counts twice", "not served", "nothing"],
)
def test_the_least_loaded_comes_first(least: dict[str, HealthReport]) -> None:
    assert told(AddressBook(["a:1", "b:1"], turn=0), **least).choose(1.0) == ["b:1", "a:1"]


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 4))
def test_sessions_that_open_between_two_reports_are_spread(num_servers: int, num_sessions: int, turn: int) -> None:
    addresses = [f"{number}:1" for number in range(num_servers)]
    book = told(AddressBook(addresses, turn=turn), **{str(number): SERVED for number in range(num_servers)})
    taken = []
    for _ in range(num_sessions):
        taken.append(book.choose(1.0)[0])
        book.took(taken[-1], "", None, 1.0)
    assert taken[0] == addresses[turn % num_servers]
    counts = [taken.count(address) for address in addresses]
    assert max(counts) - min(counts) <= 1


def test_what_a_server_says_when_it_takes_a_session_counts() -> None:
    book = told(AddressBook(["a:1", "b:1"], turn=0), a=SERVED, b=SERVED)
    book.took("a:1", "", Load(sessions=1), 0.5)
    book.took("b:1", "", Load(sessions=7), 0.5)
    assert book.choose(1.0) == ["a:1", "b:1"]
    for _ in range(6):
        assert book.choose(1.0)[0] == "a:1"
        book.took("a:1", "", None, 1.0)
    assert book.choose(1.0)[0] == "b:1"


def test_what_one_said_long_ago_is_not_compared_with_what_another_said_just_now() -> None:
    book = told(AddressBook(["a:1", "b:1"], turn=0, max_age_s=2.0), a=loaded(sessions=9))
    told(book, 5.0, b=SERVED)
    assert book.choose(5.0) == ["a:1", "b:1"]
    assert told(book, 6.0, a=loaded(sessions=9)).choose(6.0) == ["b:1", "a:1"]


def test_calls_go_to_who_has_fewest_of_them_and_then_in_turn() -> None:
    book = AddressBook(["a:1", "b:1", "c:1"], turn=1)
    begun = []
    for _ in range(6):
        begun.append(book.choose(0.0)[0])
        book.begin_call(begun[-1])
    assert begun == ["b:1", "c:1", "a:1"] * 2
    book.end_call("c:1")
    assert book.choose(0.0)[0] == "c:1"


def test_a_session_stays_where_it_is() -> None:
    book = told(AddressBook(["a:1", "b:1"], turn=0), a=loaded(sessions=99), b=SERVED)
    assert book.choose(1.0, first="a:1") == ["a:1", "b:1"]
    assert book.choose(1.0, without="b:1") == ["a:1"]


def test_a_model_is_looked_for_where_it_is_served() -> None:
    book = AddressBook(["a:1", "b:1"], turn=0)
    for address, service in (("a:1", "small"), ("b:1", "large")):
        other = {"small": "large", "large": "small"}[service]
        book.heard(address, service, loaded(sessions=50), 0.0)
        book.heard(address, other, HealthReport(serving=False, models=(service,)), 0.0)
    assert book.choose(1.0, "small") == ["a:1", "b:1"]
    assert book.choose(1.0, "large") == ["b:1", "a:1"]


def test_all_are_asked_where_one_has_said_nothing_for_too_long() -> None:
    book = AddressBook(["a:1", "b:1"], max_age_s=2.0)
    assert book.to_ask(0.0) == ("a:1", "b:1")
    told(book, a=SERVED, b=SERVED)
    assert book.to_ask(2.0) == ()
    assert book.to_ask(2.0, "small") == ("a:1", "b:1")
    assert book.to_ask(2.1) == ("a:1", "b:1")
    told(book, 3.0, a=SERVED)
    assert book.to_ask(3.0) == ("a:1", "b:1")


@pytest.mark.parametrize(
    "book", [AddressBook(["a:1"]), AddressBook(["a:1", "b:1"], in_order=True)], ids=["one", "in order"]
)
def test_nobody_is_asked_where_there_is_nothing_to_choose(book: AddressBook) -> None:
    assert book.to_ask(0.0) == ()
    assert book.to_ask(0.0, for_call=True) == ()
    assert not book.is_balancing


def test_who_does_not_answer_comes_behind_those_who_do_and_is_not_waited_for_again_at_once() -> None:
    book = told(AddressBook(["a:1", "b:1"], turn=0, max_age_s=2.0), b=loaded(sessions=9))
    book.unheard("a:1", "", 0.0, DeadlineExceededError("no answer"))
    assert book.choose(0.0) == ["b:1", "a:1"]
    assert book.to_ask(1.0) == ()
    assert book.to_ask(3.0) == ("b:1",)
    told(book, QUIET_S, b=SERVED)
    assert book.to_ask(QUIET_S) == ("a:1", "b:1")
    assert told(book, QUIET_S, a=SERVED).choose(QUIET_S)[0] == "a:1"


def test_who_answers_with_a_refusal_is_there() -> None:
    book = told(AddressBook(["a:1", "b:1"], turn=0), b=loaded(sessions=1))
    book.unheard("a:1", "", 0.0, ResourceExhaustedError("too many requests"))
    assert book.choose(0.0) == ["a:1", "b:1"]


def test_calls_find_a_server_again_that_was_away() -> None:
    book = AddressBook(["a:1", "b:1"], turn=0)
    assert book.to_ask(0.0, for_call=True) == ()
    book.failed("a:1", 0.0, GONE)
    assert book.choose(0.0)[0] == "b:1"
    assert book.to_ask(QUIET_S - 0.1, for_call=True) == ()
    assert book.to_ask(QUIET_S, for_call=True) == ("a:1",)
    book.unheard("a:1", "", QUIET_S, GONE)
    assert book.to_ask(QUIET_S + 1, for_call=True) == ()
    book.heard("a:1", "", SERVED, 2 * QUIET_S)
    assert book.choose(2 * QUIET_S)[0] == "a:1"
    assert book.to_ask(9 * QUIET_S, for_call=True) == ()


def test_behind_a_proxy_there_are_others_at_the_same_address() -> None:
    book = AddressBook(["p:1"], is_proxy=True)
    assert book.has_others
    assert set(book.choose(0.0, first="p:1")) == {"p:1"}
    assert len(book.choose(0.0, without="p:1")) > 1
    stopping = ServerUnavailableError("this server is stopping", request_id="of one of those behind it")
    for _ in range(10):
        book.failed("p:1", 0.0, stopping)
    assert book.choose(0.0)
    for _ in range(3):
        book.failed("p:1", 0.0, GONE)
    with pytest.raises(ServerUnavailableError, match="nothing is asked for another"):
        book.choose(0.0)


def test_a_book_is_a_sequence_of_its_addresses_and_says_in_one_line_what_it_knows() -> None:
    book = told(AddressBook(["a:1", "b:1"], turn=0), a=loaded(steps=1, sessions=2, kv_bytes=3))
    book.heard("b:1", "small", HealthReport(serving=False), 0.5)
    book.failed("b:1", 0.0, GONE)
    assert [*book] == ["a:1", "b:1"] == [book[0], *book[1:]]
    assert repr(book) == (
        "<a:1: all 1 steps 2 sessions 3/0 B at 0.000, 0 calls, 0 sessions taken; "
        "b:1: 1 failures, small not served at 0.500, 0 calls, 0 sessions taken>"
    )


def test_times_are_checked() -> None:
    for options in ({"max_age_s": 0.0}, {"patience_s": -1.0}):
        with pytest.raises(ValueError, match="greater than zero"):
            AddressBook(["a:1"], **options)
