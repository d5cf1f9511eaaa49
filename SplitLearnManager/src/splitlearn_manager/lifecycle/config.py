"""What can be set about the lives of models."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """Settings of a `ModelManager`, checked once.

    Raises:
        ValueError: a number out of range.
        TypeError: an unknown key.
    """

    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """Memory for models in bytes, by device: `{"cpu": 8 << 30, "cuda:0": 70 << 30}`; one not named has no limit."""
    may_unload_idle: bool = False
    """Whether models without sessions may be unloaded, the least recently used first, to make room for another."""
    drain_timeout_s: float = 30.0
    """How long `unload_model` waits for the sessions of a model, in seconds, before it ends them."""
    end_timeout_s: float = 10.0
    """How long a model's process may take to end in order, in seconds, before it is killed."""
    max_restarts: int = 0
    """How often in a row a model is loaded again whose process ended by itself."""
    restart_delay_s: float = 1.0
    """How long to wait before the first such load, in seconds; twice as long before each further one."""
    steady_after_s: float = 600.0
    """After so long in service, in seconds, the next end of a process is the first in a row again."""

    def __post_init__(self) -> None:
        for key in ("drain_timeout_s", "end_timeout_s", "max_restarts", "restart_delay_s", "steady_after_s"):
            _check_number(key, getattr(self, key))
        for device, limit in self.memory_bytes.items():
            _check_number(f"memory_bytes[{device!r}]", limit)

    def restart_delay_after(self, num_restarts: int) -> float | None:
        """Return how long to wait before another load of a model that was restarted so often; None for no more."""
        return self.restart_delay_s * 2**num_restarts if num_restarts < self.max_restarts else None


def _check_number(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{key} must be a number of at least 0; got {value!r}")
