"""All models of a server: loaded, unloaded and replaced while others serve."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Self

from splitlearn_comm import Lease
from splitlearn_manager.lifecycle.catalogue import Catalogue
from splitlearn_manager.lifecycle.config import LifecycleConfig
from splitlearn_manager.lifecycle.entry import ModelEntry, ModelStatus
from splitlearn_manager.lifecycle.events import Broadcaster, EventStream
from splitlearn_manager.lifecycle.keeper import Keeper, all_of
from splitlearn_manager.lifecycle.runner import ModelRunner, ProcessRunner
from splitlearn_manager.lifecycle.state import State
from splitlearn_manager.runtime.model_spec import ModelSpec


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
        self._models = Catalogue()
        self._events = Broadcaster()
        start = start or partial(ProcessRunner, end_timeout_s=config.end_timeout_s)
        self._keeper = Keeper(self._models, config, start, clock, self._events)

    def __repr__(self) -> str:
        return f"<models {self._models!r}, {self._keeper!r}>"

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
        entry = self._keeper.begin_load(self._models.versions(model)[-1].spec if isinstance(model, str) else model)
        if wait:
            await self._keeper.wait_loaded(entry)
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
        await self._keeper.cancel(entry, "its load was cancelled")
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
                self._keeper.dismiss(entry)
        served = [entry for entry in entries if entry.state is State.READY]
        await all_of([self._keeper.begin_unload(entry, "it was asked to", timeout_s) for entry in served])
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
        entry = self._keeper.begin_load(replace(spec or before[-1].spec, name=name, version=version))
        await self._keeper.wait_loaded(entry)
        for old in before:
            if old.state is State.READY:
                self._keeper.begin_unload(old, f"version {version} took its place", None)
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
        await self._keeper.close()
        self._events.close()

    def _status(self, entry: ModelEntry) -> ModelStatus:
        return entry.status(self._keeper.footprint_of(entry))
