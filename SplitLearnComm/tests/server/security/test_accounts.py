import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm import ResourceExhaustedError, SessionNotFoundError
from splitlearn_comm.server import ClientLimits
from splitlearn_comm.server.security.accounts import MAX_IDLE_ACCOUNTS, MAX_PAUSE_S, Accounts, ClientAccount, Meter


def account(**limits: float) -> ClientAccount:
    return Accounts(ClientLimits(**limits)).of("alice", False, 0.0)  # type: ignore[arg-type]


def test_so_many_calls_at_once_and_no_more() -> None:
    alice = account(max_calls=2)
    alice.begin_call()
    alice.begin_call()
    with pytest.raises(
        ResourceExhaustedError, match=r"alice has 2 calls in flight.*may have 2.*client_limits.max_calls"
    ):
        alice.begin_call()
    alice.end_call()
    alice.begin_call()


def test_requests_come_back_with_time() -> None:
    alice = account(requests_per_s=10)
    for _ in range(11):
        alice.admit(1, 0.0)
    with pytest.raises(ResourceExhaustedError, match="more requests than 10 a second") as refused:
        alice.admit(1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(0.1)
    alice.admit(1, 0.11)


def test_a_large_message_passes_and_is_paid_for_afterwards() -> None:
    alice = account(bytes_per_s=100)
    alice.admit(1000, 0.0)
    with pytest.raises(ResourceExhaustedError, match="more bytes than 100 a second") as refused:
        alice.admit(1, 0.0)
    assert refused.value.retry_after_s == pytest.approx(9.0)
    alice.admit(1, 9.01)


def test_what_is_refused_is_not_paid_for() -> None:
    alice = account(requests_per_s=1)
    alice.admit(1, 0.0)
    alice.admit(1, 0.0)
    for _ in range(100):
        with pytest.raises(ResourceExhaustedError):
            alice.admit(1, 0.0)
    alice.admit(1, 1.01)


def test_sessions_that_are_closed_count_no_more() -> None:
    alice, is_open = account(max_sessions=2), {"a", "b"}
    alice.open_session("a", is_open.__contains__)
    alice.open_session("b", is_open.__contains__)
    with pytest.raises(
        ResourceExhaustedError, match=r"2 sessions open.*close sessions.*client_limits.max_sessions"
    ) as no:
        alice.open_session("c", is_open.__contains__)
    assert no.value.retry_after_s
    is_open.remove("a")
    alice.open_session("c", is_open.__contains__)


def test_another_clients_session_is_not_there() -> None:
    accounts = Accounts(ClientLimits())
    alice, bob = accounts.of("alice", False, 0.0), accounts.of("bob", False, 0.0)
    alice.open_session("a", lambda _: True)
    alice.check_owns("a")
    bob.check_owns("of nobody yet")
    with pytest.raises(SessionNotFoundError, match="no session a of this client"):
        bob.check_owns("a")


def test_a_client_without_a_token_may_come_back_from_another_address() -> None:
    accounts = Accounts(ClientLimits())
    accounts.of("ipv4:10.0.0.1", True, 0.0).open_session("a", lambda _: True)
    accounts.of("ipv4:10.0.0.2", True, 0.0).check_owns("a")


def test_replies_kept_are_held_until_their_session_is_closed() -> None:
    alice, is_open = account(max_bytes_held=100), {"a", "b"}
    for session_id in ("a", "b"):
        alice.open_session(session_id, is_open.__contains__)
        alice.keep_reply(session_id, 80)
        alice.keep_reply(session_id, 40)
    alice.hold(20)
    with pytest.raises(ResourceExhaustedError, match=r"100 bytes held here.*client_limits.max_bytes_held"):
        alice.hold(1)
    is_open.remove("a")
    alice.hold(40)


@given(st.lists(st.integers(0, 1000), max_size=30))
def test_a_meter_gives_back_what_it_held(sizes: list[int]) -> None:
    alice = account(max_bytes_held=1000)
    meter = Meter(alice, 1 << 20)
    for size in sizes:
        meter.receive(size)
        if size % 2:
            meter.admit(0.0)
        else:
            meter.settle(0.0)
    meter.release()
    assert "0 bytes held" in repr(alice)


def test_chunks_without_a_message_end() -> None:
    meter = Meter(account(), 1 << 20)
    for _ in range(3):
        meter.receive(1 << 20)
    with pytest.raises(ResourceExhaustedError, match="bytes came in chunks, and the message they belong to did not"):
        meter.receive(1)


def test_a_message_that_made_no_sense_is_paid_for_too() -> None:
    meter = Meter(account(requests_per_s=1), 1 << 20)
    pauses = []
    for _ in range(10):
        meter.receive(1)
        pauses.append(meter.settle(0.0))
    assert pauses[0] == 0.0
    assert pauses[-1] == MAX_PAUSE_S


def test_accounts_of_clients_that_left_are_forgotten() -> None:
    accounts = Accounts(ClientLimits(requests_per_s=10))
    busy = accounts.of("busy", True, 0.0)
    busy.begin_call()
    for number in range(3 * MAX_IDLE_ACCOUNTS):
        accounts.of(f"ipv4:{number}", True, float(number))
    assert len(accounts) <= MAX_IDLE_ACCOUNTS + 1
    assert accounts.of("busy", True, 0.0) is busy
