"""One version of one model, as the registry keeps it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from splitlearn_comm import Lease, ServiceInfo, SessionHost
from splitlearn_manager.errors import ManagerError, ModelNotReadyError
from splitlearn_manager.lifecycle.budget import Footprint
from splitlearn_manager.lifecycle.runner import ModelRunner
from splitlearn_manager.lifecycle.state import Condition, ModelLife, State
from splitlearn_manager.runtime.load_reporter import LoadProgress
from splitlearn_manager.runtime.model_spec import ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatus:
    """What there is to know about one version of a model."""

    spec: ModelSpec
    """What was asked for."""
    condition: Condition
    """The state it is in, why, and since when."""
    progress: LoadProgress | None
    """How far its load is; None beside a load."""
    num_sessions: int
    """Sessions, and calls, that hold it."""
    last_used: float
    """When one last began or ended, in seconds of the manager's clock."""
    footprint: Footprint | None
    """The memory booked for it; None where nothing is."""
    info: ServiceInfo | None
    """What it serves; None unless it was loaded."""
    pid: int | None
    """Its process; None without one."""
    load_s: float | None = None
    """How long its last load took, in seconds; None before the first has ended well."""
    host: SessionHost | None = None
    """What serves it; None unless it was loaded."""

    @property
    def name(self) -> str:
        """What clients ask for."""
        return self.spec.name

    @property
    def version(self) -> int:
        """Number of this version."""
        return self.spec.version

    @property
    def state(self) -> State:
        """What it is doing."""
        return self.condition.state


class ModelEntry:
    """One version of one model: where it is in its life, what runs it, and who holds it.

    Args:
        spec: what was asked for.
        clock: the time, in seconds.
        on_move: told of each change of the state.
    """

    def __init__(self, spec: ModelSpec, clock: Callable[[], float], on_move: Callable[["ModelEntry"], object]) -> None:
        self.spec = spec
        self.life = ModelLife(spec.label, clock())
        self.progress: LoadProgress | None = None
        self.runner: ModelRunner | None = None
        self.loading: asyncio.Task[None] | None = None
        """Of the load in progress; cancelling it cancels the load."""
        self.owner: asyncio.Task[None] | None = None
        """Sees the model from its load to its end."""
        self.loaded: asyncio.Future[None] = _answered_to_nobody()
        """How the last load that was asked for ended."""
        self.num_loads = 0
        self.hurry = asyncio.Event()
        """Set when nobody can wait any longer: for sessions to end, or for another load."""
        self.last_used = clock()
        self._clock = clock
        self._on_move = on_move
        self._leases: set[int] = set()
        self._num_leased = 0
        self._load_began = self.last_used
        self._load_s: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<{self.life!r}, {len(self._leases)} sessions>"

    @property
    def label(self) -> str:
        """Name and version, for people and for the budget."""
        return self.spec.label

    @property
    def state(self) -> State:
        """What it is doing."""
        return self.life.state

    @property
    def is_loading(self) -> bool:
        """Whether it is on its way to be ready."""
        return self.state in (State.LOADING, State.WARMING)

    @property
    def is_unloading(self) -> bool:
        """Whether its process ends, or its load was cancelled."""
        return self.state is State.UNLOADING

    @property
    def num_sessions(self) -> int:
        """Sessions, and calls, that hold it."""
        return len(self._leases)

    def status(self, footprint: Footprint | None) -> ModelStatus:
        """Return what there is to know."""
        is_served = self.state in (State.READY, State.DRAINING)
        return ModelStatus(
            spec=self.spec,
            condition=self.life.condition,
            progress=self.progress,
            num_sessions=self.num_sessions,
            last_used=self.last_used,
            footprint=footprint,
            info=self.runner.host.get_info() if self.runner is not None and is_served else None,
            pid=None if self.runner is None else self.runner.pid,
            load_s=self._load_s,
            host=self.runner.host if self.runner is not None and is_served else None,
        )

    def move(self, state: State, reason: str) -> None:
        """Go on to another state."""
        now, was_loading = self._clock(), self.is_loading
        self.life.move(state, reason, now)
        if state is State.LOADING:
            self._load_began = now
        elif state is State.READY and was_loading:
            self._load_s = now - self._load_began
        if state not in (State.LOADING, State.WARMING):
            self.progress = None
        self._on_move(self)

    def begin_load(self, reason: str) -> None:
        """Go to LOADING; `loaded` will say how it ended."""
        self.num_loads += 1
        self.hurry = asyncio.Event()
        self.loaded = _answered_to_nobody()
        self.move(State.LOADING, reason)

    def fail(self, error: ManagerError) -> None:
        """Go to FAILED, and forget whoever held it: they are told by the host itself."""
        self.drop_runner()
        self.move(State.FAILED, str(error))
        if not self.loaded.done():
            self.loaded.set_exception(error)

    def drop_runner(self) -> None:
        """Forget what ran it, and whoever held that."""
        self.runner = None
        self._leases.clear()
        self._idle.set()

    def lease(self) -> Lease:
        """Return a hold on its host: while it is held, the model is not unloaded.

        Raises:
            ModelNotReadyError: it takes no sessions now.
        """
        if self.state is not State.READY or self.runner is None:
            raise self.not_ready()
        self._num_leased += 1
        number = self._num_leased
        self._leases.add(number)
        self._idle.clear()
        self.last_used = self._clock()
        return Lease(self.runner.host, lambda: self._release(number))

    def not_ready(self) -> ModelNotReadyError:
        """Return what to raise where it would have to be ready."""
        at = f", {self.progress}" if self.progress else ""
        return ModelNotReadyError(
            f"{self.label} takes no sessions: it is {self.state.value} ({self.life.condition.reason}{at}); "
            f"try again later, or ask for another model"
        )

    def _release(self, number: int) -> None:
        # One of a process that has ended is no longer there: it must not be taken for one of the next.
        self._leases.discard(number)
        self.last_used = self._clock()
        if not self._leases:
            self._idle.set()

    async def wait_idle(self, timeout_s: float | None) -> None:
        """Wait until nobody holds it, or its process has ended, or `hurry` is set, or the timeout is over."""
        assert self.runner is not None
        waits = [asyncio.ensure_future(w) for w in (self._idle.wait(), self.runner.wait_ended(), self.hurry.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _answered_to_nobody() -> asyncio.Future[None]:
    """Return a future whose exception need not be looked at."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
