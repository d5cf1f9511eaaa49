"""The seam to serving: by which model's name a session finds its host."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from splitlearn_comm import SessionHost


class HostLease:
    """The right of one session, or one call, to a model: while it is held, the model is not unloaded.

    Args:
        name: of the model.
        version: of the model.
        host: what serves it.
        on_release: called once, with this lease.
    """

    def __init__(self, name: str, version: int, host: SessionHost, on_release: "Callable[[HostLease], object]") -> None:
        self.name = name
        self.version = version
        self.host = host
        self._on_release = on_release
        self._is_held = True

    def __repr__(self) -> str:
        return f"<lease of {self.name} version {self.version}: {'held' if self._is_held else 'released'}>"

    def release(self) -> None:
        """Give it back. May be called twice."""
        if self._is_held:
            self._is_held = False
            self._on_release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class ModelDirectory(ABC):
    """Finds the hosts of models. Called on the event loop; never waits."""

    @abstractmethod
    def host_for(self, name: str, version: int | None = None) -> HostLease:
        """Lease the host of a model for a session or a call.

        Args:
            name: of the model.
            version: None for the newest that is ready.

        Raises:
            ModelNotFoundError: nothing is known of this name or version.
            ModelNotReadyError: it takes no sessions now.
        """
