"""What becomes of models once they were asked for: each is seen from its load to its end."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from functools import partial

from splitlearn_manager.errors import (
    LoadCancelledError,
    ManagerError,
    ModelLoadError,
    ModelStateError,
)
from splitlearn_manager.lifecycle.budget import Budget, Footprint, Idle
from splitlearn_manager.lifecycle.catalogue import Catalogue
from splitlearn_manager.lifecycle.config import LifecycleConfig
from splitlearn_manager.lifecycle.entry import ModelEntry
from splitlearn_manager.lifecycle.events import Broadcaster
from splitlearn_manager.lifecycle.runner import ModelRunner
from splitlearn_manager.lifecycle.state import STABLE, Command, State
from splitlearn_manager.runtime.load_reporter import WARMING, LoadProgress, ModelSize
from splitlearn_manager.runtime.model_spec import ModelSpec

logger = logging.getLogger(__name__)

_CLOSING = "the manager is closing"


class Keeper:
    """Moves models on: loads them, loads again those whose process ended, makes room, unloads. Owns the tasks that do.

    Belongs to one event loop. Commands are checked by whoever gives them, but for loads.

    Args:
        models: all that are known; unloaded ones are tidied away.
        config: memory, waiting times and restarts.
        start: makes what runs a model.
        clock: the time, in seconds.
        events: told of what happens.
    """

    def __init__(
        self,
        models: Catalogue,
        config: LifecycleConfig,
        start: Callable[[ModelSpec], ModelRunner],
        clock: Callable[[], float],
        events: Broadcaster,
    ) -> None:
        self._models = models
        self._config = config
        self._start = start
        self._clock = clock
        self._events = events
        self._budget = Budget(config.memory_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def __repr__(self) -> str:
        return repr(self._budget)

    def footprint_of(self, entry: ModelEntry) -> Footprint | None:
        """Return the memory booked for a model; None where nothing is."""
        return self._budget.footprint_of(entry.label)

    async def close(self) -> None:
        """End all models without waiting for their sessions. May be called twice."""
        self._is_closing = True
        for entry in self._models:
            entry.hurry.set()
            if entry.is_loading:
                self._begin_cancel(entry, _CLOSING)
            elif entry.state is State.READY:
                self.begin_unload(entry, _CLOSING, 0)
        while self._tasks:
            await all_of(self._tasks)

    # Loading

    def begin_load(self, spec: ModelSpec) -> ModelEntry:
        """Begin to load a model; `wait_loaded` tells how that ended.

        Raises:
            ModelStateError: it cannot be loaded in the state it is in.
        """
        if self._is_closing:
            raise ModelStateError(f"cannot load {spec.label}: {_CLOSING}")
        entry = self._models.get(spec.name, spec.version) or ModelEntry(spec, self._clock, self._tell)
        entry.life.check(Command.LOAD)
        self._models.add(entry)
        entry.spec = spec
        entry.hurry.set()  # whoever waits to load it again need not any more
        entry.begin_load("it was asked to")
        entry.owner = self._own(self._live(entry))
        return entry

    async def _live(self, entry: ModelEntry) -> None:
        """See a model from its load to its end, and load it again where that is configured."""
        num_restarts = 0
        while await self._load(entry):
            began = self._clock()
            how = await self._watch(entry)
            if how is None:
                return
            num_restarts = 0 if self._clock() - began >= self._config.steady_after_s else num_restarts
            if not await self._is_to_restart(entry, num_restarts):
                return
            num_restarts += 1
            entry.begin_load(f"restart {num_restarts} of {self._config.max_restarts}: its process {how}")

    async def _watch(self, entry: ModelEntry) -> str | None:
        """Wait for the end of a model's process; returns how it ended by itself, None if it was ended."""
        runner = entry.runner
        assert runner is not None
        how = await runner.wait_ended()
        if entry.runner is not runner or entry.state is not State.READY:
            return None  # whoever unloads it goes on
        self._budget.free(entry.label)
        entry.fail(ModelLoadError(f"its process {how}"))
        logger.error("%s failed: its process %s", entry.label, how)
        return how

    async def _is_to_restart(self, entry: ModelEntry, num_restarts: int) -> bool:
        """Wait as long as is configured; returns whether the model is to be loaded again then."""
        delay_s = self._config.restart_delay_after(num_restarts)
        if delay_s is None:
            return False
        hurry = entry.hurry
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), delay_s)
        return not hurry.is_set()

    async def _load(self, entry: ModelEntry) -> bool:
        """Load a model; returns whether it is ready. Otherwise nothing of it is left, and its state says so."""
        error = await self._run_load(entry)
        if entry.is_unloading:
            await self._finish_cancelled(entry)
        elif error is not None:
            self._budget.free(entry.label)
            entry.fail(_as_manager_error(error, entry))
        else:
            self._finish_loaded(entry)
        return error is None and entry.state is State.READY

    async def _run_load(self, entry: ModelEntry) -> BaseException | None:
        """Run a load to its end; returns what went wrong."""
        if entry.is_unloading:  # cancelled before it began
            return LoadCancelledError("cancelled")
        entry.runner = self._start(entry.spec)
        load = entry.runner.load(partial(self._admit, entry), partial(self._take_progress, entry))
        entry.loading = loading = asyncio.create_task(load, name=f"load {entry.label}")
        await asyncio.wait([loading])
        entry.loading = None
        return LoadCancelledError("cancelled") if loading.cancelled() else loading.exception()

    def _finish_loaded(self, entry: ModelEntry) -> None:
        if entry.state is State.LOADING:
            entry.move(State.WARMING, "its weights are loaded")
        entry.move(State.READY, "it was loaded")
        entry.last_used = self._clock()
        entry.loaded.set_result(None)

    async def _finish_cancelled(self, entry: ModelEntry) -> None:
        if entry.runner is not None:  # it may have been ready in the same moment
            await entry.runner.end()
        reason = entry.life.condition.reason
        self._budget.free(entry.label)
        entry.drop_runner()
        entry.move(State.UNLOADED, reason)
        entry.loaded.set_exception(LoadCancelledError(f"{entry.label} was not loaded: {reason}"))
        self._models.tidy(entry.spec.name)

    async def wait_loaded(self, entry: ModelEntry) -> None:
        """Wait until a model is ready; raises why it is not. A wait that is cancelled cancels the load."""
        loaded = entry.loaded
        try:
            await asyncio.shield(loaded)
        except asyncio.CancelledError:
            if not loaded.done():
                self._begin_cancel(entry, "whoever asked for it gave up")
            raise

    def _begin_cancel(self, entry: ModelEntry, reason: str) -> None:
        if entry.is_loading:
            entry.move(State.UNLOADING, reason)
            if entry.loading is not None:
                entry.loading.cancel()

    async def cancel(self, entry: ModelEntry, reason: str) -> None:
        """Cancel a load, and wait until nothing of it is left."""
        self._begin_cancel(entry, reason)
        assert entry.owner is not None
        await asyncio.shield(entry.owner)

    async def _admit(self, entry: ModelEntry, size: ModelSize) -> None:
        """Book a model, and unload what has to make room for it."""
        spec = entry.spec
        footprint = Footprint(
            weights_bytes=size.weights_bytes,
            kv_bytes=spec.kv_bytes,
            activation_bytes=spec.activation_bytes,
            training_bytes=spec.training_bytes,
        )
        idle = {other.label: other for other in self._models if self._may_make_room(other, entry)}
        ages = [Idle(label=label, last_used=other.last_used) for label, other in idle.items()]
        victims = self._budget.admit(entry.label, size.device, footprint, ages)
        # Begun before anybody else can run: nobody leases a model that is struck off.
        ends = [self.begin_unload(idle[label], f"it made room for {entry.label}", 0) for label in victims]
        await all_of(ends)

    def _may_make_room(self, other: ModelEntry, entry: ModelEntry) -> bool:
        is_idle = other.state is State.READY and not other.num_sessions
        # The version that serves until the new one is ready is not idle for long.
        return self._config.may_unload_idle and is_idle and other.spec.name != entry.spec.name

    def _take_progress(self, entry: ModelEntry, progress: LoadProgress) -> None:
        entry.progress = progress
        if progress.phase == WARMING and entry.state is State.LOADING:
            entry.move(State.WARMING, "its weights are loaded")
        else:
            self._tell(entry)

    # Unloading

    def begin_unload(self, entry: ModelEntry, reason: str, drain_timeout_s: float | None) -> asyncio.Task[None]:
        """Begin to unload a model that is ready, once its sessions have ended or so many seconds are over."""
        entry.move(State.DRAINING, reason)
        return self._own(self._unload(entry, reason, drain_timeout_s))

    async def _unload(self, entry: ModelEntry, reason: str, drain_timeout_s: float | None) -> None:
        runner = entry.runner
        assert runner is not None
        await entry.wait_idle(drain_timeout_s)
        cut = f"; {entry.num_sessions} sessions were ended" if entry.num_sessions else ""
        entry.move(State.UNLOADING, reason + cut)
        await runner.end()
        self._budget.free(entry.label)
        entry.drop_runner()
        entry.move(State.UNLOADED, reason + cut)
        self._models.tidy(entry.spec.name)

    def dismiss(self, entry: ModelEntry) -> None:
        """Forget why a model failed, and do not load it again."""
        entry.hurry.set()
        entry.move(State.UNLOADED, "it was asked to")
        self._models.tidy(entry.spec.name)

    # Keeping

    def _own(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._let_go)
        return task

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a fault in the life of a model", exc_info=error)

    def _tell(self, entry: ModelEntry) -> None:
        self._events.tell(entry.spec.name, entry.spec.version, entry.life.condition, entry.progress)
        if entry.life.state in STABLE:
            logger.info("%s is %s: %s", entry.label, entry.state.value, entry.life.condition.reason)


async def all_of(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait for tasks that go on when this is cancelled; raises the first error of them."""
    await asyncio.shield(asyncio.gather(*tasks))


def _as_manager_error(error: BaseException, entry: ModelEntry) -> ManagerError:
    if isinstance(error, ManagerError):
        return error
    logger.error("loading %s failed", entry.label, exc_info=error)
    return ModelLoadError(f"{entry.label} cannot be loaded: the server failed; its log has the reason")
