"""The states of a model, and the commands that are taken in each."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from splitlearn_manager.errors import ModelExistsError, ModelStateError
from splitlearn_manager.lifecycle.state import ACCEPTED, STABLE, TRANSITIONS, Command, ModelLife, State


class Way(RuleBasedStateMachine):
    """A life that anybody moves at any time: only along the table, and a refused command or move changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.life = ModelLife("tiny version 1", self.now)

    @rule(state=st.sampled_from(State))
    def move(self, state: State) -> None:
        before = self.life.condition
        self.now += 1
        if state in TRANSITIONS[before.state]:
            assert self.life.move(state, "because", self.now) is self.life.condition
            assert (self.life.state, self.life.condition.since) == (state, self.now)
        else:
            with pytest.raises(AssertionError):
                self.life.move(state, "because", self.now)
            assert self.life.condition is before

    @rule(command=st.sampled_from(Command))
    def command(self, command: Command) -> None:
        before = self.life.condition
        if before.state in ACCEPTED[command]:
            self.life.check(command)
        else:
            with pytest.raises(
                ModelStateError, match=f"cannot {command.value} tiny version 1: it is {before.state.value}"
            ):
                self.life.check(command)
        assert self.life.condition is before

    @invariant()
    def it_can_come_to_rest(self) -> None:
        reached, new = set(), {self.life.state}
        while new:
            reached |= new
            new = {after for state in new for after in TRANSITIONS[state]} - reached
        assert reached & STABLE
        assert State.UNLOADED in reached


TestWay = Way.TestCase
TestWay.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)


def test_every_command_begins_with_a_move_that_is_legal() -> None:
    begins = {
        Command.LOAD: {State.LOADING},
        Command.CANCEL: {State.UNLOADING},
        Command.UNLOAD: {State.DRAINING, State.UNLOADED},
    }
    for command, moves in begins.items():
        for state in ACCEPTED[command]:
            assert TRANSITIONS[state] & moves, (command, state)


@pytest.mark.parametrize("state", sorted(set(State) - STABLE, key=lambda state: state.value))
def test_what_is_not_stable_takes_neither_a_load_nor_an_unload(state: State) -> None:
    assert state not in ACCEPTED[Command.LOAD] | ACCEPTED[Command.UNLOAD] | ACCEPTED[Command.RELOAD]


def test_a_refusal_says_the_state_why_and_what_to_do() -> None:
    life = ModelLife("tiny version 1", 0.0)
    life.move(State.LOADING, "it was asked to", 1.0)
    with pytest.raises(ModelStateError) as caught:
        life.check(Command.UNLOAD)
    assert str(caught.value) == (
        "cannot unload tiny version 1: it is loading (it was asked to); wait until it is ready, or cancel its load"
    )
    assert caught.value.code.name == "FAILED_PRECONDITION"


@pytest.mark.parametrize("state", [State.LOADING, State.WARMING, State.READY, State.DRAINING])
def test_what_is_there_is_not_loaded_twice(state: State) -> None:
    life = ModelLife("tiny version 1", 0.0)
    for step in (State.LOADING, State.WARMING, State.READY, State.DRAINING):
        life.move(step, "because", 1.0)
        if step is state:
            break
    with pytest.raises(ModelStateError, match="cannot load tiny version 1: it is ") as caught:
        life.check(Command.LOAD)
    assert isinstance(caught.value, ModelExistsError) is (state is not State.DRAINING)
    assert caught.value.code.name == ("FAILED_PRECONDITION" if state is State.DRAINING else "ALREADY_EXISTS")
