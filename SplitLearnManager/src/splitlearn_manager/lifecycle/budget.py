"""What memory there is for models, and which idle ones make room for another: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitlearn_manager.errors import BudgetExceededError


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """The memory that a model takes, in bytes."""

    weights_bytes: int
    kv_bytes: int
    """Set aside for the caches of its sessions."""
    activation_bytes: int
    """Set aside for what one forward makes in passing."""
    training_bytes: int = 0
    """Set aside for what clients that train keep."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.activation_bytes + self.training_bytes

    def __str__(self) -> str:
        return (
            f"{amount(self.total_bytes)} (weights {amount(self.weights_bytes)}, caches {amount(self.kv_bytes)}, "
            f"activations {amount(self.activation_bytes)}, trainings {amount(self.training_bytes)})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle:
    """A model without sessions, which may be unloaded to make room."""

    label: str
    last_used: float
    """When it last had one, on any clock that runs forward."""


@dataclass(frozen=True, slots=True)
class _Booking:
    device: str
    footprint: Footprint


class Budget:
    """The books of the memory of each device.

    Args:
        limits: bytes for models, for each device; of a device that is not named there is as much as is asked for.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = dict(limits)
        self._bookings: dict[str, _Booking] = {}

    def __repr__(self) -> str:
        devices = sorted({*self._limits, *(booking.device for booking in self._bookings.values())})
        shown = ", ".join(f"{d}: {amount(self.booked_bytes(d))} of {self._shown_limit(d)}" for d in devices)
        return f"<budget {shown or 'unused'}>"

    def booked_bytes(self, device: str) -> int:
        """Return what the models on a device take."""
        return sum(b.footprint.total_bytes for b in self._bookings.values() if b.device == device)

    def footprint_of(self, label: str) -> Footprint | None:
        """Return what a model takes, None if nothing is booked for it."""
        booking = self._bookings.get(label)
        return booking.footprint if booking else None

    def admit(self, label: str, device: str, footprint: Footprint, idle: Sequence[Idle] = ()) -> tuple[str, ...]:
        """Book a model, and strike off those that have to make room for it.

        Args:
            label: of the model.
            device: where it will run.
            footprint: what it takes.
            idle: those that may be unloaded for it; others are left alone.

        Returns:
            The labels of those to unload, the least recently used first: booked no more, and to be unloaded before
            this one is loaded.

        Raises:
            BudgetExceededError: there is no room, not even without all that may be unloaded. Nothing has changed.
        """
        assert label not in self._bookings, f"{label} is booked already"
        missing = self._missing_bytes(device, footprint)
        chosen = self._chosen(missing, [model for model in idle if self._is_on(model.label, device)])
        if chosen is None:
            raise BudgetExceededError(self._refusal(label, device, footprint, idle))
        for victim in chosen:
            del self._bookings[victim]
        self._bookings[label] = _Booking(device, footprint)
        return chosen

    def free(self, label: str) -> None:
        """Strike a model off. One that is not there is no error."""
        self._bookings.pop(label, None)

    def _missing_bytes(self, device: str, footprint: Footprint) -> int:
        limit = self._limits.get(device)
        return 0 if limit is None else self.booked_bytes(device) + footprint.total_bytes - limit

    def _is_on(self, label: str, device: str) -> bool:
        return label in self._bookings and self._bookings[label].device == device

    def _chosen(self, missing: int, idle: Sequence[Idle]) -> tuple[str, ...] | None:
        """Return as many as are needed, least recently used first; None if all of them are not enough."""
        chosen: list[str] = []
        for model in sorted(idle, key=lambda model: model.last_used):
            if missing <= 0:
                break
            chosen.append(model.label)
            missing -= self._bytes_of(model.label)
        if missing > 0:
            return None
        # A large one taken last may have made a small one before it needless; the most recently used is spared first.
        for label in reversed(chosen[:]):
            if missing + self._bytes_of(label) <= 0:
                chosen.remove(label)
                missing += self._bytes_of(label)
        return tuple(chosen)

    def _bytes_of(self, label: str) -> int:
        return self._bookings[label].footprint.total_bytes

    def _shown_limit(self, device: str) -> str:
        return amount(self._limits[device]) if device in self._limits else "no limit"

    def _refusal(self, label: str, device: str, footprint: Footprint, idle: Sequence[Idle]) -> str:
        here = {name: b.footprint.total_bytes for name, b in self._bookings.items() if b.device == device}
        free = self._limits[device] - sum(here.values())
        taken = ", ".join(f"{name} {amount(size)}" for name, size in here.items())
        also = " and those without sessions would not be enough" if idle else ""
        return (
            f"no room for {label}: it needs {footprint} on {device}, where {amount(max(free, 0))} of "
            f"{self._shown_limit(device)} are free{f' beside {taken}' if taken else ''}{also}; unload a model, set "
            f"less aside for its caches or trainings, or raise memory_bytes"
        )


def amount(num_bytes: int) -> str:
    """Return a number of bytes for people: "1.5 GiB"."""
    size, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{num_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
