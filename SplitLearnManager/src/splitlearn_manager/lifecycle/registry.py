"""All models of a server: loaded, unloaded and replaced while others serve."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Self

from splitlearn_comm import Lease
from splitlearn_manager.errors import (
    LoadCancelledError,
    ManagerError,
    ModelLoadError,
    ModelStateError,
)
from splitlearn_manager.lifecycle.budget import Budget, Footprint, Idle
from splitlearn_manager.lifecycle.catalogue import Catalogue
from splitlearn_manager.lifecycle.config import LifecycleConfig
from splitlearn_manager.lifecycle.entry import ModelEntry, ModelStatus
from splitlearn_manager.lifecycle.events import Broadcaster, EventStream
from splitlearn_manager.lifecycle.runner import ModelRunner, ProcessRunner
from splitlearn_manager.lifecycle.state import STABLE, Command, State
from splitlearn_manager.runtime.load_reporter import WARMING, LoadProgress, ModelSize
from splitlearn_manager.runtime.model_spec import ModelSpec

logger = logging.getLogger(__name__)

_CLOSING = "the manager is closing"


class ModelManager:
    """Loads models, each in a process of its own, and says which of them serves whom.

    An asynchronous context manager; leaving it ends all models. All of it belongs to the event loop it was entered on.
    A command that does not fit what a model is doing is answered at once with a `ModelStateError`.

    Args:
        config: memory, waiting times and restarts.
        start: makes what runs a model; None for a process of its own.
        clock: the time, in seconds; that of states and of last use.
    """

    def __init__(
        self,
        config: LifecycleConfig = LifecycleConfig(),  # noqa: B008 - frozen
        *,
        start: Callable[[ModelSpec], ModelRunner] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._start = start or partial(ProcessRunner, end_timeout_s=config.end_timeout_s)
        self._clock = clock
        self._budget = Budget(config.memory_bytes)
        self._models = Catalogue()
        self._events = Broadcaster()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def __repr__(self) -> str:
        return f"<models {self._models!r}, {self._budget!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def load_model(self, model: ModelSpec | str, *, wait: bool = True) -> ModelStatus:
        """Load a model.

        Args:
            model: what to load, or the name of a model that was unloaded or failed.
            wait: until it is ready; a wait that is cancelled cancels the load. Otherwise `wait_ready` tells.

        Raises:
            ModelStateError: this version of it is loading, loaded, or being unloaded.
            ModelNotFoundError: nothing is known under the name.
            BudgetExceededError: no room for it.
            ModelLoadError: it cannot be loaded, and why.
            LoadCancelledError: somebody else cancelled the load.
        """
        entry = self._begin_load(self._models.versions(model)[-1].spec if isinstance(model, str) else model)
        if wait:
            await self._wait_loaded(entry)
        return self._status(entry)

    async def cancel_load(self, name: str, version: int | None = None) -> ModelStatus:
        """Cancel a load, and wait until nothing of it is left.

        Args:
            name: of the model.
            version: None for the newest.

        Raises:
            ModelNotFoundError: nothing is known of it.
            ModelStateError: it is not loading.
        """
        entry = self._models.to_cancel(name, version)
        await self._cancel(entry, "its load was cancelled")
        return self._status(entry)

    async def unload_model(
        self, name: str, version: int | None = None, *, drain_timeout_s: float | None = None
    ) -> tuple[ModelStatus, ...]:
        """Take no new sessions, wait for those there are, and end the model's process.

        Args:
            name: of the model.
            version: None for all versions that are loaded.
            drain_timeout_s: how long its sessions may go on; None for the configured time.

        Raises:
            ModelNotFoundError: nothing is known of it.
            ModelStateError: it is loading, or being unloaded, or not loaded. Nothing has changed.
        """
        entries = self._models.to_unload(name, version)
        timeout_s = self._config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        for entry in entries:
            if entry.state is State.FAILED:
                self._dismiss(entry)
        served = [entry for entry in entries if entry.state is State.READY]
        await _all([self._begin_unload(entry, "it was asked to", timeout_s) for entry in served])
        return tuple(self._status(entry) for entry in entries)

    async def reload_model(self, name: str, spec: ModelSpec | None = None) -> ModelStatus:
        """Load a model again as its next version, from then on give that to new sessions, and unload the ones before
        as soon as their sessions have ended. When the new one cannot be loaded, the old one goes on.

        Args:
            name: of the model.
            spec: what to load instead; its version is set here. None for the same again: another commit, other files.

        Raises:
            ModelNotFoundError: nothing is known of it.
            ModelStateError: it is not ready, or another version of it is loading.
            BudgetExceededError, ModelLoadError, LoadCancelledError: as `load_model`; the old version goes on.
        """
        before = self._models.to_reload(name)
        self._models.forget(name, (State.FAILED, State.UNLOADED))
        version = self._models.versions(name)[-1].spec.version + 1
        entry = self._begin_load(replace(spec or before[-1].spec, name=name, version=version))
        await self._wait_loaded(entry)
        for old in before:
            if old.state is State.READY:
                self._begin_unload(old, f"version {version} took its place", None)
        return self._status(entry)

    async def list_models(self) -> tuple[ModelStatus, ...]:
        """Return what there is to know about all models, by name and version."""
        return self.statuses()

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return the same as `list_models`, without waiting for anything."""
        return tuple(self._status(entry) for entry in self._models)

    async def get_model(self, name: str, version: int | None = None) -> ModelStatus:
        """Return what there is to know about a model.

        Args:
            name: of the model.
            version: None for the one that new sessions get, else the newest.

        Raises:
            ModelNotFoundError: nothing is known of it.
        """
        return self._status(self._models.find(name, version))

    async def wait_ready(self, name: str, version: int | None = None) -> ModelStatus:
        """Wait until a model is ready; arguments as of `get_model`.

        Raises:
            ModelNotFoundError: nothing is known of it.
            ModelNotReadyError: nobody is loading it.
            BudgetExceededError, ModelLoadError, LoadCancelledError: as `load_model`.
        """
        entry = self._models.find(name, version)
        if entry.is_loading:
            await asyncio.shield(entry.loaded)
        if entry.state is not State.READY:
            raise entry.not_ready()
        return self._status(entry)

    def events(self) -> EventStream:
        """Return a stream of all changes of states, and of loads getting on, from now on."""
        return self._events.subscribe()

    def host_for(self, name: str, version: int | None = None) -> Lease:
        """Lease the host of a model, the newest version that is ready where none is named.

        Raises:
            ModelNotFoundError, ModelNotReadyError: nothing is known of it, or it takes no sessions now.
        """
        return self._models.find(name, version).lease()

    async def close(self) -> None:
        """End all models without waiting for their sessions. May be called twice."""
        self._is_closing = True
        for entry in self._models:
            entry.hurry.set()
            if entry.is_loading:
                self._begin_cancel(entry, _CLOSING)
            elif entry.state is State.READY:
                self._begin_unload(entry, _CLOSING, 0)
        while self._tasks:
            await _all(self._tasks)
        self._events.close()

    def _status(self, entry: ModelEntry) -> ModelStatus:
        return entry.status(self._budget.footprint_of(entry.label))

    # Loading

    def _begin_load(self, spec: ModelSpec) -> ModelEntry:
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

    async def _wait_loaded(self, entry: ModelEntry) -> None:
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

    async def _cancel(self, entry: ModelEntry, reason: str) -> None:
        self._begin_cancel(entry, reason)
        assert entry.owner is not None
        await asyncio.shield(entry.owner)

    async def _admit(self, entry: ModelEntry, size: ModelSize) -> None:
        """Book a model, and unload what has to make room for it."""
        spec = entry.spec
        footprint = Footprint(
            weights_bytes=size.weights_bytes, kv_bytes=spec.kv_bytes, activation_bytes=spec.activation_bytes
        )
        idle = {other.label: other for other in self._models if self._may_make_room(other, entry)}
        ages = [Idle(label=label, last_used=other.last_used) for label, other in idle.items()]
        victims = self._budget.admit(entry.label, size.device, footprint, ages)
        # Begun before anybody else can run: nobody leases a model that is struck off.
        ends = [self._begin_unload(idle[label], f"it made room for {entry.label}", 0) for label in victims]
        await _all(ends)

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

    def _begin_unload(self, entry: ModelEntry, reason: str, drain_timeout_s: float | None) -> asyncio.Task[None]:
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

    def _dismiss(self, entry: ModelEntry) -> None:
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


async def _all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait for tasks that go on when this is cancelled; raises the first error of them."""
    await asyncio.shield(asyncio.gather(*tasks))


def _as_manager_error(error: BaseException, entry: ModelEntry) -> ManagerError:
    if isinstance(error, ManagerError):
        return error
    logger.error("loading %s failed", entry.label, exc_info=error)
    return ModelLoadError(f"{entry.label} cannot be loaded: the server failed; its log has the reason")
