"""The models of a manager, as a server of Comm finds them: by name, by version, or by the fingerprint they have."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from splitlearn_comm import HostDirectory, Lease, ServerUnavailableError, Wanted
from splitlearn_comm.directory import Listener, not_found, only
from splitlearn_manager.control.discretion import without_directories
from splitlearn_manager.errors import ModelNotFoundError, ModelNotReadyError
from splitlearn_manager.lifecycle import EventStream, LifecycleConfig, ModelManager, ModelSpec, State
from splitlearn_manager.lifecycle.runner import ProcessRunner


class ModelHosts(HostDirectory):
    """Serves what is ready of a `ModelManager`, which lives from `setup` to `teardown`.

    A session keeps the version that it began with. One that names no version gets the newest that is ready; one that
    names no model the one with the fingerprint it expects, or the only one.

    Args:
        specs: the models to load before anything is served.
        config: of the manager.
        usual: what a model that says nothing of them takes for `TRAINING_KEYS`.
    """

    def __init__(
        self, specs: Sequence[ModelSpec], config: LifecycleConfig, usual: Mapping[str, Any] | None = None
    ) -> None:
        self._specs = tuple(specs)
        self._config = config
        self._usual = dict(usual or {})
        self._manager: ModelManager | None = None
        self._followers: set[asyncio.Task[None]] = set()

    @property
    def manager(self) -> ModelManager:
        """All models. There from `setup` on; belongs to the event loop of the server."""
        assert self._manager is not None, "not set up"
        return self._manager

    async def setup(self) -> None:
        """Load the models, all at once.

        Raises:
            BudgetExceededError, ModelLoadError: one cannot be loaded. Nothing is left of the others.
        """
        self._manager = manager = ModelManager(self._config, start=self._start)
        try:
            await asyncio.gather(*(manager.load_model(spec) for spec in self._specs))
        except BaseException:
            await asyncio.shield(manager.close())
            raise

    def _start(self, spec: ModelSpec) -> ProcessRunner:
        """Make the process of a model. Those that operators load get here too."""
        complete = replace(spec, **(self._usual | spec.said_of_training))
        return ProcessRunner(complete, end_timeout_s=self._config.end_timeout_s)

    async def teardown(self) -> None:
        """End all models."""
        await self.manager.close()
        await asyncio.gather(*self._followers)

    def names(self) -> tuple[str, ...]:
        """The models of which a version is ready."""
        return tuple(sorted({status.name for status in self.manager.statuses() if status.state is State.READY}))

    def lease(self, wanted: Wanted) -> Lease:
        """A version of a model, which is not unloaded while it is held."""
        name = wanted.name or self._unnamed(wanted.fingerprint)
        if wanted.version and not wanted.version.isdecimal():
            raise not_found(wanted, self.names())
        try:
            return self.manager.host_for(name, int(wanted.version) if wanted.version else None)
        except ModelNotFoundError as error:
            raise not_found(wanted, self.names()) from error
        except ModelNotReadyError as error:
            models = [status.spec.model for status in self.manager.statuses() if status.name == name]
            raise ServerUnavailableError(without_directories(str(error), *models)) from error

    def _unnamed(self, fingerprint: str) -> str:
        ready = [status for status in self.manager.statuses() if status.state is State.READY]
        fitting = {s.name for s in ready if fingerprint and s.info is not None and s.info.fingerprint == fingerprint}
        return only(fitting or {status.name for status in ready})

    def subscribe(self, listener: Listener) -> None:
        """Tell a listener of each model that becomes ready, or is so no more."""
        follower = asyncio.create_task(self._follow(self.manager.events(), set(self.names()), listener))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)

    async def _follow(self, events: EventStream, told: set[str], listener: Listener) -> None:
        async for _ in events:
            # Compared, and not read off the event: events that wait too long are dropped.
            ready = set(self.names())
            for name in ready ^ told:
                listener(name, name in ready)
            told = ready
