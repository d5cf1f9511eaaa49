"""The port from the control surface to whatever serves models, and the two that do."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from splitlearn_comm import ServiceInfo, SessionHost
from splitlearn_manager.control.discretion import told
from splitlearn_manager.control.orders import LoadOrder, UnloadOrder
from splitlearn_manager.errors import ModelStateError
from splitlearn_manager.lifecycle import ModelManager, ModelStatus, State


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """What the control surface tells of one version of a model."""

    name: str
    version: int
    state: State
    reason: str
    """Why, as operators may see it; others see `told_reason`."""
    since: float
    """When it came to that state, in seconds since 1970 (UTC)."""
    num_sessions: int
    """Sessions, and calls, that it serves now."""
    progress: str = ""
    """How far its load is; empty beside a load."""
    info: ServiceInfo | None = None
    """What it serves; None unless it was loaded."""
    host: SessionHost | None = None
    """What serves it; None unless it was loaded."""
    pid: int | None = None
    """Its own process; None without one."""
    load_s: float | None = None
    """How long its last load took, in seconds; None where that is not known."""
    model: str = ""
    """What was to be loaded: a hub id or a directory."""

    @property
    def told_reason(self) -> str:
        """Why it is in that state, as the client of the call that is being served may see it."""
        return told(self.reason, self.model)


class ControlledModels(ABC):
    """The models of a server, as operators know them. Called on the server's event loop."""

    @abstractmethod
    def rows(self) -> tuple[ModelRow, ...]:
        """Return all models, by name and version."""

    @abstractmethod
    async def load(self, order: LoadOrder) -> None:
        """Load a model and wait until it is ready; raises as `ModelManager.load_model` and `reload_model`."""

    @abstractmethod
    async def unload(self, order: UnloadOrder) -> None:
        """Unload a model; raises as `ModelManager.unload_model`."""


class ManagedModels(ControlledModels):
    """Those of a `ModelManager`.

    Args:
        manager: returns it; it is there once the server has started.
    """

    def __init__(self, manager: Callable[[], ModelManager]) -> None:
        self._manager = manager

    def rows(self) -> tuple[ModelRow, ...]:
        """Return what the manager knows."""
        return tuple(_row(status) for status in self._manager().statuses())

    async def load(self, order: LoadOrder) -> None:
        """Load a model, for the first time or again."""
        manager = self._manager()
        known = None if order.is_complete else (await manager.get_model(order.name)).spec
        if order.is_reload:
            await manager.reload_model(order.name, order.spec(known))
        else:
            await manager.load_model(order.spec(known))

    async def unload(self, order: UnloadOrder) -> None:
        """Unload a model."""
        await self._manager().unload_model(order.name, order.version, drain_timeout_s=order.drain_timeout_s)


class OneModel(ControlledModels):
    """The only one of a server that was loaded with it and ends with it.

    Args:
        host: what serves it.
        since: when it was loaded.
        num_sessions: counts its sessions.
        load_s: how long its load took, in seconds.
    """

    def __init__(
        self, host: SessionHost, since: float, num_sessions: Callable[[], int], load_s: float | None = None
    ) -> None:
        self._host = host
        self._since = since
        self._num_sessions = num_sessions
        self._load_s = load_s

    def rows(self) -> tuple[ModelRow, ...]:
        """Return the one."""
        info = self._host.get_info()
        return (
            ModelRow(
                name=info.name,
                version=1,
                state=State.READY,
                reason="it was loaded with the server",
                since=self._since,
                num_sessions=self._num_sessions(),
                info=info,
                host=self._host,
                load_s=self._load_s,
            ),
        )

    async def load(self, order: LoadOrder) -> None:
        """Refuse."""
        raise self._refusal("load", order.name)

    async def unload(self, order: UnloadOrder) -> None:
        """Refuse."""
        raise self._refusal("unload", order.name)

    def _refusal(self, command: str, name: str) -> ModelStateError:
        return ModelStateError(
            f"cannot {command} {name}: this server holds {self._host.get_info().name} in its own process and no other; "
            f"start it with --managed for models that come and go"
        )


def _row(status: ModelStatus) -> ModelRow:
    return ModelRow(
        name=status.name,
        version=status.version,
        state=status.state,
        reason=status.condition.reason,
        since=status.condition.since,
        num_sessions=status.num_sessions,
        progress=str(status.progress or ""),
        info=status.info,
        host=status.host,
        pid=status.pid,
        load_s=status.load_s,
        model=status.spec.model,
    )
