"""Which models are known, and which of their versions a command or a session means."""

from collections.abc import Iterable, Iterator

from splitlearn_manager.errors import ModelNotFoundError
from splitlearn_manager.lifecycle.entry import ModelEntry
from splitlearn_manager.lifecycle.state import Command, State


class Catalogue:
    """All versions of all models, by name and version."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int], ModelEntry] = {}

    def __iter__(self) -> Iterator[ModelEntry]:
        """Iterate over them by name and version; they may change meanwhile."""
        return iter([entry for _, entry in sorted(self._entries.items())])

    def __repr__(self) -> str:
        return f"<{list(self)}>"

    def get(self, name: str, version: int) -> ModelEntry | None:
        """Return a version of a model, None if it is not known."""
        return self._entries.get((name, version))

    def add(self, entry: ModelEntry) -> None:
        """Take a model in."""
        self._entries[entry.spec.name, entry.spec.version] = entry

    def versions(self, name: str) -> list[ModelEntry]:
        """Return the versions of a model, the oldest first; at least one.

        Raises:
            ModelNotFoundError: nothing is known of the name.
        """
        found = [entry for entry in self if entry.spec.name == name]
        if not found:
            known = ", ".join(sorted({entry.spec.name for entry in self})) or "none"
            raise ModelNotFoundError(f"there is no model {name!r}; known are: {known}")
        return found

    def find(self, name: str, version: int | None) -> ModelEntry:
        """Return a version of a model; of None the newest that is ready, else the newest.

        Raises:
            ModelNotFoundError: nothing is known of it.
        """
        versions = self.versions(name)
        if version is None:
            return ([entry for entry in versions if entry.state is State.READY] or versions)[-1]
        for entry in versions:
            if entry.spec.version == version:
                return entry
        known = ", ".join(str(entry.spec.version) for entry in versions)
        raise ModelNotFoundError(f"model {name!r} has no version {version}; known are: {known}")

    def to_cancel(self, name: str, version: int | None) -> ModelEntry:
        """Return the load that a command means; raises as `find`, and `ModelStateError` if there is none."""
        versions = self.versions(name) if version is None else [self.find(name, version)]
        entry = ([entry for entry in versions if entry.is_loading] or versions)[-1]
        entry.life.check(Command.CANCEL)
        return entry

    def to_unload(self, name: str, version: int | None) -> list[ModelEntry]:
        """Return what a command to unload means; raises as `find`, and `ModelStateError` if one cannot be."""
        versions = self.versions(name)
        if version is not None:
            versions = [self.find(name, version)]
        entries = [entry for entry in versions if entry.state is not State.UNLOADED] or versions
        for entry in entries:
            entry.life.check(Command.UNLOAD)
        return entries

    def to_reload(self, name: str) -> list[ModelEntry]:
        """Return the versions that a reload replaces, the oldest first; raises as `find`, and `ModelStateError` if
        there is none, or another is on its way."""
        versions = self.versions(name)
        for entry in versions:
            if entry.is_loading:
                entry.life.check(Command.RELOAD)
        self.find(name, None).life.check(Command.RELOAD)
        return [entry for entry in versions if entry.state is State.READY]

    def forget(self, name: str, states: Iterable[State]) -> None:
        """Forget the versions of a model that are in one of these states."""
        for entry in self:
            if entry.spec.name == name and entry.state in states:
                entry.hurry.set()  # nobody is to load it again
                del self._entries[entry.spec.name, entry.spec.version]

    def tidy(self, name: str) -> None:
        """Of a model's versions that are unloaded keep the newest alone, and not that beside others."""
        known = [entry for entry in self if entry.spec.name == name]
        for entry in known[:-1] if all(entry.state is State.UNLOADED for entry in known) else known:
            if entry.state is State.UNLOADED:
                del self._entries[entry.spec.name, entry.spec.version]
