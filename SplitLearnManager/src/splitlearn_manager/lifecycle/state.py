"""The states of a model, and which may follow which: pure.

::

    UNLOADED ──load──▶ LOADING ──▶ WARMING ──▶ READY ──unload──▶ DRAINING ──▶ UNLOADING ──▶ UNLOADED
                          │           │          │                                ▲
                          ├──cancel───┴──────────┼────────────────────────────────┘
                          └──error──▶ FAILED ◀───┘        FAILED ──load──▶ LOADING, ──unload──▶ UNLOADED
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from splitlearn_manager.errors import ModelExistsError, ModelStateError


class State(Enum):
    """What a model is doing."""

    UNLOADED = "unloaded"
    """Nothing of it is in memory."""
    LOADING = "loading"
    """Its process starts, or reads the weights."""
    WARMING = "warming"
    """The weights are there; the first forwards run."""
    READY = "ready"
    """It takes sessions."""
    DRAINING = "draining"
    """It takes no new sessions, and waits for its last to end."""
    UNLOADING = "unloading"
    """Its process ends."""
    FAILED = "failed"
    """It could not be loaded, or its process ended by itself."""


class Command(Enum):
    """What may be asked of a model."""

    LOAD = "load"
    CANCEL = "cancel the load of"
    UNLOAD = "unload"
    RELOAD = "reload"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.UNLOADED: frozenset({State.LOADING}),
    State.LOADING: frozenset({State.WARMING, State.UNLOADING, State.FAILED}),
    State.WARMING: frozenset({State.READY, State.UNLOADING, State.FAILED}),
    State.READY: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.UNLOADING}),
    State.UNLOADING: frozenset({State.UNLOADED}),
    State.FAILED: frozenset({State.LOADING, State.UNLOADED}),
}
"""Every state, and those that may follow it."""

STABLE = frozenset({State.UNLOADED, State.READY, State.FAILED})
"""Where a model stays until it is asked for something, or its process dies."""

ACCEPTED: Mapping[Command, frozenset[State]] = {
    Command.LOAD: frozenset({State.UNLOADED, State.FAILED}),
    Command.CANCEL: frozenset({State.LOADING, State.WARMING}),
    Command.UNLOAD: frozenset({State.READY, State.FAILED}),
    Command.RELOAD: frozenset({State.READY}),
}
"""Every command, and the states in which it is taken."""

_ADVICE: Mapping[State, str] = {
    State.UNLOADED: "load it first",
    State.LOADING: "wait until it is ready, or cancel its load",
    State.WARMING: "wait until it is ready, or cancel its load",
    State.READY: "reload it, unload it first, or load it under another name or version",
    State.DRAINING: "wait until its sessions have ended",
    State.UNLOADING: "wait until it is unloaded",
    State.FAILED: "load it again, or unload it",
}

if set(TRANSITIONS) != set(State) or set(_ADVICE) != set(State) or set(ACCEPTED) != set(Command):
    raise RuntimeError("the tables of states and commands have come apart")


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """The state of a model at one time."""

    state: State
    reason: str
    """Why, in words."""
    since: float
    """Since when, in seconds of the clock of whoever moved it."""


class ModelLife:
    """One model's way through the states.

    Args:
        label: name and version, for messages.
        now: the time.
    """

    def __init__(self, label: str, now: float) -> None:
        self._label = label
        self.condition = Condition(state=State.UNLOADED, reason="it was never loaded", since=now)

    def __repr__(self) -> str:
        return f"<{self._label}: {self.state.value}, {self.condition.reason}>"

    @property
    def state(self) -> State:
        """What it is doing."""
        return self.condition.state

    @property
    def is_stable(self) -> bool:
        """Whether it stays as it is until it is asked for something."""
        return self.state in STABLE

    def check(self, command: Command) -> None:
        """Raise `ModelStateError`, with what to do instead, for a command that is not taken in this state."""
        if self.state not in ACCEPTED[command]:
            is_there = command is Command.LOAD and self.state in (State.LOADING, State.WARMING, State.READY)
            raise (ModelExistsError if is_there else ModelStateError)(
                f"cannot {command.value} {self._label}: it is {self.state.value} "
                f"({self.condition.reason}); {_ADVICE[self.state]}"
            )

    def move(self, state: State, reason: str, now: float) -> Condition:
        """Go on to another state; one that may not follow is a fault of the caller."""
        assert state in TRANSITIONS[self.state], f"{self._label} cannot go from {self.state} to {state}"
        self.condition = Condition(state=state, reason=reason, since=now)
        return self.condition
