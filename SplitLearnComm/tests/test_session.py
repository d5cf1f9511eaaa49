import re

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitlearn_comm.errors import InvalidRequestError, ResourceExhaustedError, SessionNotFoundError, StepOrderError
from splitlearn_comm.session import (
    MAX_FORGOTTEN,
    Advance,
    Effect,
    Ledger,
    Mark,
    Permute,
    Replay,
    Run,
    SessionTable,
    Trim,
)


def done(ledger: Ledger, effect: Effect) -> None:
    assert isinstance(ledger.admit(ledger.step_id + 1, ledger.position, effect), Run)
    ledger.commit(b"reply %d" % (ledger.step_id + 1))


class OnceMeansOnce(RuleBasedStateMachine):
    """Steps arrive in any order and number; each is done once, and its effect is there once."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger("s")
        self.done: list[tuple[int, bytes]] = []
        self.position = 0

    @precondition(lambda self: not self.ledger.is_running)
    @rule(num_tokens=st.integers(0, 5), succeeds=st.booleans())
    def next_forward(self, num_tokens: int, succeeds: bool) -> None:
        step_id = len(self.done) + 1
        assert self.ledger.admit(step_id, self.position, Advance(2, num_tokens)) == Run(self.position + num_tokens, 2)
        if not succeeds:
            self.ledger.abandon()
            return
        self.ledger.commit(b"%d" % step_id)
        self.done.append((self.position, b"%d" % step_id))
        self.position += num_tokens

    @precondition(lambda self: self.position > 0)
    @rule(data=st.data())
    def next_crop(self, data: st.DataObject) -> None:
        num_tokens = data.draw(st.integers(0, self.position))
        step_id = len(self.done) + 1
        self.ledger.admit(step_id, self.position, Trim(num_tokens))
        self.ledger.commit(b"%d" % step_id)
        self.done.append((self.position, b"%d" % step_id))
        self.position -= num_tokens

    @precondition(lambda self: self.done)
    @rule(num_tokens=st.integers(0, 5))
    def last_again(self, num_tokens: int) -> None:
        position, reply = self.done[-1]
        assert self.ledger.admit(len(self.done), position, Advance(2, num_tokens)) == Replay(reply)

    @rule(step_id=st.integers(0, 50), position=st.integers(0, 50))
    def anything_else(self, step_id: int, position: int) -> None:
        if step_id - len(self.done) in (0, 1) and step_id > 0:
            return
        with pytest.raises(StepOrderError):
            self.ledger.admit(step_id, position, Mark())

    @invariant()
    def position_is_the_sum_of_what_was_done(self) -> None:
        assert self.ledger.position == self.position
        assert self.ledger.step_id == len(self.done)


OnceMeansOnce.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
TestOnceMeansOnce = OnceMeansOnce.TestCase


def test_wrong_order_is_refused_with_both_numbers() -> None:
    ledger = Ledger("s")
    for _ in range(3):
        done(ledger, Advance(1, 4))
    for step_id, position, said in [
        (2, 4, "step 2 .* step 3"),
        (5, 12, "step 5 .* step 3 is done, expected 4"),
        (4, 11, "11 .* 12"),
        (3, 12, "12 .* 8"),
    ]:
        with pytest.raises(StepOrderError, match=said):
            ledger.admit(step_id, position, Advance(1, 1))
    assert repr(ledger) == "<session s: step 3, position 12, batch 1, idle>"


@pytest.mark.parametrize("effect", [Trim(-1), Trim(5), Permute(()), Permute((0, 2)), Permute((-1,)), Advance(3, 1)])
def test_effects_that_cannot_be_are_refused_and_change_nothing(effect: Effect) -> None:
    ledger = Ledger("s")
    done(ledger, Advance(2, 4))
    with pytest.raises(InvalidRequestError):
        ledger.admit(2, 4, effect)
    assert (ledger.position, ledger.batch, ledger.step_id, ledger.is_running) == (4, 2, 1, False)


def test_reorder_changes_the_batch() -> None:
    ledger = Ledger("s")
    with pytest.raises(InvalidRequestError, match="before the first forward"):
        ledger.admit(1, 0, Permute((0,)))
    done(ledger, Advance(2, 4))
    done(ledger, Permute((1, 1, 0)))
    done(ledger, Advance(3, 1))
    assert (ledger.batch, ledger.position) == (3, 5)


def test_two_steps_do_not_run_at_the_same_time() -> None:
    ledger = Ledger("s")
    ledger.admit(1, 0, Mark())
    with pytest.raises(StepOrderError, match="running"):
        ledger.admit(1, 0, Mark())


@pytest.fixture
def table() -> SessionTable:
    return SessionTable(max_sessions=2, idle_timeout_s=600, detached_timeout_s=30)


def test_an_idle_session_ends_and_its_age_is_told(table: SessionTable) -> None:
    attachment = table.open("a", now=0)
    table.use("a", attachment, now=100)
    assert table.expire(now=699.9) == ()
    assert table.expire(now=700) == ("a",)
    assert len(table) == 0
    with pytest.raises(SessionNotFoundError, match=r"expired 700 s after .* idle for 600 s.* limit is 600 s"):
        table.use("a", attachment, now=701)
    with pytest.raises(SessionNotFoundError, match="never opened"):
        table.use("b", attachment, now=701)


def test_a_running_step_keeps_its_session(table: SessionTable) -> None:
    attachment = table.open("a", now=0)
    ledger = table.use("a", attachment, now=0)
    ledger.admit(1, 0, Mark())
    assert table.expire(now=10_000) == ()
    ledger.commit(b"")
    assert table.expire(now=10_000) == ("a",)


def test_a_detached_session_waits_for_its_client(table: SessionTable) -> None:
    first = table.open("a", now=0)
    table.detach("a", first, now=10)
    assert table.expire(now=39) == ()
    second = table.resume("a", now=39)
    assert table.expire(now=100) == ()
    with pytest.raises(SessionNotFoundError, match="another stream"):
        table.use("a", first, now=100)
    table.detach("a", first, now=100)
    assert table.expire(now=200) == (), "the end of the old stream is of no interest any more"
    table.detach("a", second, now=200)
    assert table.expire(now=230) == ("a",)
    with pytest.raises(SessionNotFoundError, match=re.escape("connection broke 30 s before, and the limit is 30 s")):
        table.resume("a", now=231)


def test_who_computes_with_what_a_session_trains_uses_it(table: SessionTable) -> None:
    table.open("training", now=0, client="alice")
    table.begin_training("training", "mine")
    computing = table.open("computing", now=0, client="alice", adapter="mine")
    table.use_adapter("alice", "mine", now=100)
    table.use_adapter("bob", "mine", now=200)
    table.use_adapter("alice", "another", now=200)
    table.use_adapter("alice", "", now=200)
    table.use("computing", computing, now=400)
    assert table.expire(now=999) == ()
    table.close("computing")
    assert table.expire(now=1000) == ("training",)
    table.use_adapter("alice", "mine", now=1000)  # nothing trains it any more


def test_a_training_is_idle_since_anybody_used_it(table: SessionTable) -> None:
    attachment = table.open("training", now=0, client="alice")
    assert table.idle_training_s("training", now=5) is None
    table.begin_training("training", "mine", has_weights=False)
    assert table.idle_training_s("training", now=5) is None, "there is nothing to save"
    assert not table.is_training("training")
    table.begin_training("training", "mine")
    assert table.is_training("training")
    assert table.idle_training_s("training", now=5) == 5
    table.use("training", attachment, now=6)
    assert table.idle_training_s("training", now=10) == 4
    table.use_adapter("alice", "mine", now=9)
    assert table.idle_training_s("training", now=10) == 1
    assert table.idle_training_s("unknown", now=10) is None


def test_of_two_that_train_under_one_name_the_other_goes_on(table: SessionTable) -> None:
    for session_id in ("one", "other"):  # at two services of one address
        table.open(session_id, now=0, client="alice")
        table.begin_training(session_id, "mine")
        table.begin_training(session_id, "mine")
    table.close("one")
    table.begin_training("one", "mine")
    table.use_adapter("alice", "mine", now=100)
    assert table.expire(now=699) == ()
    assert table.expire(now=700) == ("other",)


def test_a_training_whose_stream_broke_is_known_for_a_while(table: SessionTable) -> None:
    for session_id in ("training", "other"):
        attachment = table.open(session_id, now=0)
        table.detach(session_id, attachment, now=10)
    assert not table.has_training_between_streams(now=11, patience_s=2)
    table.begin_training("training", "")
    assert table.has_training_between_streams(now=11, patience_s=2)
    assert not table.has_training_between_streams(now=12, patience_s=2)
    table.give_up("training")
    table.give_up("unknown")
    assert not table.has_training_between_streams(now=11, patience_s=2)
    table.begin_training("other", "")
    assert table.has_training_between_streams(now=11, patience_s=2)
    table.resume("other", now=11)
    assert not table.has_training_between_streams(now=11, patience_s=2)


def test_there_is_a_limit_and_ids_are_checked(table: SessionTable) -> None:
    table.open("a", now=0)
    with pytest.raises(InvalidRequestError, match="exists already"):
        table.open("a", now=0)
    for session_id in ("", "x" * 129):
        with pytest.raises(InvalidRequestError, match="128 characters"):
            table.open(session_id, now=0)
    table.open("b", now=0)
    with pytest.raises(ResourceExhaustedError, match="2 sessions"):
        table.open("c", now=0)
    assert table.close("a")
    assert not table.close("a")
    table.open("c", now=0)
    assert repr(table) == "<2 of 2 sessions open, 0 detached>"
    assert table.close_all() == ("b", "c")


def test_the_memory_of_ended_sessions_is_bounded(table: SessionTable) -> None:
    for number in range(MAX_FORGOTTEN + 1):
        table.open(f"s{number}", now=0)
        table.close(f"s{number}")
    with pytest.raises(SessionNotFoundError, match="never opened"):
        table.ledger("s0")
    with pytest.raises(SessionNotFoundError, match="closed by its client"):
        table.ledger("s1")
