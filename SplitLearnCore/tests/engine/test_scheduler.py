"""Nothing lost, nothing twice, order in a session, nobody starves, chunks cover exactly."""

from collections import defaultdict
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_core.engine import EngineLimits
from splitlearn_core.engine.scheduler import Scheduler
from splitlearn_core.engine.steps import Batch, BatchKind, Chunk, Step, StepKind, Wait

LIMITS = EngineLimits(max_rows=4, max_tokens=32, max_join_tokens=4, min_chunk_tokens=2)
JOINED_S, TOKEN_S = 0.04, 0.002


def forward(ticket: int, session: str, *, tokens: int = 1, client: str = "", at: float = 0.0, rows: int = 1) -> Step:
    return Step(
        ticket=ticket,
        session_id=session,
        client=client or session,
        kind=StepKind.FORWARD,
        arrival_s=at,
        num_rows=rows,
        num_tokens=tokens,
    )


def cost(batch: Batch) -> float:
    if batch.kind is BatchKind.OTHER:
        return 0.0001
    return JOINED_S if batch.kind is BatchKind.JOINED else 0.01 + TOKEN_S * batch.size


class Driver:
    """Runs what a scheduler says on a clock of its own."""

    def __init__(self, limits: EngineLimits = LIMITS) -> None:
        self.scheduler = Scheduler(limits)
        self.now_s = 0.0
        self.batches: list[Batch] = []
        self.done: list[Step] = []
        self.tickets = count()

    def submit(self, session: str, **given: object) -> Step:
        step = forward(next(self.tickets), session, at=self.now_s)
        step = replace(step, **given)  # type: ignore[arg-type]
        self.scheduler.submit(step)
        return step

    def turn(self) -> Batch | None:
        choice = self.scheduler.next_batch(self.now_s)
        while isinstance(choice, Wait):
            assert choice.until_s > self.now_s, "to wait for what has passed is to wait for ever"
            self.now_s = choice.until_s
            choice = self.scheduler.next_batch(self.now_s)
        if choice is None:
            return None
        self.batches.append(choice)
        self.now_s += cost(choice)
        self.done += self.scheduler.finished(choice, cost(choice), self.now_s)
        return choice

    def run_all(self) -> None:
        while self.turn() is not None:
            pass


steps = st.fixed_dictionaries(
    {
        "session": st.sampled_from("abcdefg"),
        "num_tokens": st.integers(1, 90),
        "num_rows": st.integers(1, 6),
        "is_other": st.booleans(),
        "can_join": st.booleans(),
        "can_be_cut": st.booleans(),
        "turns_before": st.integers(0, 2),
    }
)


@given(st.lists(steps, max_size=25))
def test_every_step_runs_once_wholly_and_in_the_order_of_its_session(given_steps: list[dict[str, object]]) -> None:
    driver, submitted = Driver(), defaultdict(list)
    rows = {session: index % 5 + 1 for index, session in enumerate("abcdefg")}
    for fields in given_steps:
        for _ in range(int(str(fields["turns_before"]))):
            driver.turn()
        session = str(fields["session"])
        kind = StepKind.OTHER if fields["is_other"] else StepKind.FORWARD
        step = driver.submit(
            session,
            client=session if session < "d" else "many",
            kind=kind,
            num_tokens=0 if fields["is_other"] else fields["num_tokens"],
            num_rows=rows[session],
            can_join=fields["can_join"],
            can_be_cut=fields["can_be_cut"],
        )
        submitted[session].append(step)
    driver.run_all()

    ran: dict[str, list[Step]] = defaultdict(list)
    for step in driver.done:
        ran[step.session_id].append(step)
    assert ran == submitted
    chunks: dict[int, list[Chunk]] = defaultdict(list)
    for batch in driver.batches:
        assert len({chunk.step.session_id for chunk in batch.chunks}) == len(batch.chunks)
        check_batch(batch)
        for chunk in batch.chunks:
            chunks[chunk.step.ticket].append(chunk)
    for step in driver.done:
        own = chunks[step.ticket]
        assert [chunk.begin for chunk in own] == [0, *(chunk.end for chunk in own[:-1])]
        assert own[-1].end == step.num_tokens


def check_batch(batch: Batch) -> None:
    if batch.kind is BatchKind.OTHER:
        assert all(chunk.step.kind is StepKind.OTHER for chunk in batch.chunks)
        return
    assert all(chunk.begin < chunk.end for chunk in batch.chunks)
    if len(batch.chunks) > 1:
        assert all(chunk.step.can_join for chunk in batch.chunks)
        assert len({chunk.end - chunk.begin for chunk in batch.chunks}) == 1
        assert batch.num_rows <= LIMITS.max_rows
        assert batch.size <= LIMITS.max_tokens
    step = batch.chunks[0].step
    if step.num_tokens > LIMITS.max_join_tokens:
        assert batch.kind is BatchKind.PROMPT
        assert not step.can_be_cut or batch.size <= max(LIMITS.max_tokens, step.num_rows)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.booleans(), st.sampled_from([1, 20]))
def test_nobody_starves_while_others_never_stop(lengths: list[int], can_join: bool, num_tokens: int) -> None:
    """A step that waits ends within a few turns, though every other session steps again at once for ever."""
    driver = Driver()
    for index, length in enumerate(lengths):
        driver.submit(f"busy{index}", num_tokens=length, client="busy", can_join=can_join)
    driver.turn()
    one = driver.submit("one", can_join=can_join, num_tokens=num_tokens)
    for _ in range(300):
        for step in driver.done[-len(lengths) :]:
            if step.session_id != "one" and step.session_id not in waiting(driver):
                driver.submit(step.session_id, num_tokens=step.num_tokens, client="busy", can_join=can_join)
        driver.turn()
        if one in driver.done:
            return
    pytest.fail(f"it still waits: {driver.scheduler!r}")


def waiting(driver: Driver) -> set[str]:
    return set(driver.scheduler._waiting)


class TestJoining:
    def test_short_steps_of_equal_length_join_and_others_follow(self) -> None:
        driver = Driver()
        for session, tokens in (("a", 1), ("b", 3), ("c", 1), ("d", 3)):
            driver.submit(session, num_tokens=tokens)
        driver.run_all()
        assert [[c.step.session_id for c in batch.chunks] for batch in driver.batches] == [["a", "c"], ["b", "d"]]

    def test_what_cannot_join_runs_alone(self) -> None:
        driver = Driver()
        for session in "abc":
            driver.submit(session, can_join=session != "b")
        driver.run_all()
        assert sorted(len(batch.chunks) for batch in driver.batches) == [1, 2]

    def test_a_session_with_more_rows_than_a_batch_runs_alone(self) -> None:
        driver = Driver()
        driver.submit("beams", num_rows=9)
        driver.submit("other")
        driver.run_all()
        assert [batch.num_rows for batch in driver.batches] == [9, 1]

    def test_clients_take_turns_whatever_the_number_of_their_sessions(self) -> None:
        driver = Driver(replace(LIMITS, max_rows=2))
        for index in range(6):
            driver.submit(f"many{index}", client="many")
        driver.submit("single", client="single")
        first = driver.turn()
        assert first is not None
        assert {chunk.step.client for chunk in first.chunks} == {"many", "single"}

    def test_changes_of_a_cache_run_before_forwards(self) -> None:
        driver = Driver()
        driver.submit("a")
        driver.submit("b", kind=StepKind.OTHER, num_tokens=0)
        first = driver.turn()
        assert first is not None
        assert first.kind is BatchKind.OTHER


class TestPrompts:
    def test_alone_a_prompt_runs_in_the_largest_pieces(self) -> None:
        driver = Driver()
        driver.submit("a", num_tokens=70)
        driver.run_all()
        assert [batch.size for batch in driver.batches] == [32, 32, 6]

    def test_one_that_must_come_whole_comes_whole(self) -> None:
        driver = Driver()
        driver.submit("a", num_tokens=70, can_be_cut=False)
        driver.run_all()
        assert [batch.size for batch in driver.batches] == [70]

    def test_rows_count(self) -> None:
        driver = Driver()
        driver.submit("a", num_tokens=20, num_rows=4)
        driver.run_all()
        assert [batch.size for batch in driver.batches] == [32, 32, 16]

    def test_among_eight_that_decode_nobody_waits_for_three_of_their_steps(self) -> None:
        driver = Driver(EngineLimits(wait_share=0))
        sessions = [f"s{index}" for index in range(8)]
        began = {}

        def again() -> None:
            for session in sessions:
                if session not in waiting(driver):
                    began[session] = driver.now_s
                    driver.submit(session)

        took_s: list[float] = []

        def turn() -> None:
            before = len(driver.done)
            driver.turn()
            took_s.extend(driver.now_s - began[s.session_id] for s in driver.done[before:] if s.session_id in began)

        for _ in range(20):
            again()
            turn()
        driver.submit("prompt", num_tokens=2000)
        for _ in range(1000):
            again()
            turn()
        assert "prompt" not in waiting(driver)
        assert max(took_s) < 3 * JOINED_S
        chunks = [batch for batch in driver.batches if batch.kind is BatchKind.PROMPT]
        # And the prompt gets its share: about half of the time.
        assert sum(map(cost, chunks)) > 0.7 * len(chunks) * JOINED_S

    def test_one_that_comes_while_all_others_pause_is_cut_too(self) -> None:
        driver = Driver()
        driver.submit("a")
        driver.run_all()
        driver.submit("prompt", num_tokens=70)
        first = driver.turn()
        assert first is not None
        assert first.size < 32

    def test_one_that_comes_when_nobody_has_stepped_for_long_is_not(self) -> None:
        driver = Driver()
        driver.submit("a")
        driver.run_all()
        driver.now_s += LIMITS.active_s
        driver.submit("prompt", num_tokens=70)
        first = driver.turn()
        assert first is not None
        assert first.size == 32

    def test_prompts_of_two_clients_take_turns(self) -> None:
        driver = Driver()
        driver.submit("a", num_tokens=64)
        driver.submit("b", num_tokens=64)
        driver.run_all()
        assert [batch.chunks[0].step.session_id for batch in driver.batches[:4]] == ["a", "b", "a", "b"]


class TestWaiting:
    def in_step(self, sessions: str) -> Driver:
        """Two groups that have stepped in turn for a while, each coming back 1 ms after its answer."""
        driver = Driver(EngineLimits())
        for _ in range(3):
            for session in sessions:
                driver.submit(session)
            driver.run_all()
            driver.now_s += 0.001
        return driver

    def test_steps_wait_for_those_that_come_back_at_once(self) -> None:
        driver = self.in_step("ab")
        driver.submit("a")
        choice = driver.scheduler.next_batch(driver.now_s)
        assert isinstance(choice, Wait)
        assert driver.now_s < choice.until_s <= driver.now_s + 0.15 * JOINED_S
        driver.submit("b")
        batch = driver.turn()
        assert batch is not None
        assert len(batch.chunks) == 2

    def test_they_go_when_nobody_comes(self) -> None:
        driver = self.in_step("ab")
        driver.submit("a")
        batch = driver.turn()
        assert batch is not None
        assert [chunk.step.session_id for chunk in batch.chunks] == ["a"]
        assert driver.now_s < driver.batches[-2].num_rows * 10

    def test_one_alone_never_waits(self) -> None:
        driver = self.in_step("a")
        driver.submit("a")
        assert isinstance(driver.scheduler.next_batch(driver.now_s), Batch)

    def test_nobody_waits_for_one_that_thinks_for_long(self) -> None:
        driver = Driver(EngineLimits())
        for _ in range(5):
            driver.submit("slow")
            driver.run_all()
            driver.now_s += 1.0
        driver.submit("slow")
        driver.run_all()
        driver.submit("a")
        assert isinstance(driver.scheduler.next_batch(driver.now_s), Batch)

    def test_nobody_waits_for_one_that_was_dropped(self) -> None:
        driver = self.in_step("ab")
        driver.scheduler.drop("b")
        driver.submit("a")
        assert isinstance(driver.scheduler.next_batch(driver.now_s), Batch)

    def test_nobody_waits_while_a_prompt_does(self) -> None:
        driver = self.in_step("ab")
        driver.submit("a")
        driver.submit("prompt", num_tokens=40)
        assert isinstance(driver.scheduler.next_batch(driver.now_s), Batch)


class TestDropping:
    def test_the_steps_of_a_session_that_will_not_run_are_given_back(self) -> None:
        driver = Driver()
        first, second = driver.submit("a"), driver.submit("a", num_tokens=50)
        other = driver.submit("b")
        assert driver.scheduler.drop("a") == (first, second)
        assert driver.scheduler.drop("a") == ()
        driver.run_all()
        assert driver.done == [other]

    def test_a_prompt_that_is_dropped_while_it_runs_does_not_go_on(self) -> None:
        driver = Driver()
        driver.submit("a", num_tokens=70)
        batch = driver.scheduler.next_batch(0.0)
        assert isinstance(batch, Batch)
        driver.scheduler.drop("a")
        assert driver.scheduler.finished(batch, 0.1, 0.1) == ()
        assert driver.scheduler.next_batch(0.1) is None


def test_only_the_batch_that_runs_can_be_booked() -> None:
    driver = Driver()
    driver.submit("a")
    batch = driver.scheduler.next_batch(0.0)
    with pytest.raises(AssertionError, match="was not booked"):
        driver.scheduler.next_batch(0.0)
    assert isinstance(batch, Batch)
    driver.scheduler.finished(batch, 0.1, 0.1)
    with pytest.raises(AssertionError, match="gave last"):
        driver.scheduler.finished(batch, 0.1, 0.1)


def test_it_prints_its_state_in_one_line() -> None:
    driver = Driver()
    driver.submit("a")
    driver.run_all()
    driver.submit("a")
    driver.submit("b", num_tokens=70)
    assert repr(driver.scheduler) == (
        "Scheduler(running nothing, waiting 2 steps of 2 sessions, 1 prompts, joined 40.00 ms, prompt ? ms/token)"
    )


@pytest.mark.parametrize(
    ("name", "value"), [("max_rows", 0), ("max_tokens", 0), ("max_join_tokens", 0), ("chunk_share", -1.0)]
)
def test_a_limit_that_lets_nothing_through_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        EngineLimits(**{name: value})  # type: ignore[arg-type]
