"""The adapters that clients have published: how many, how large, for how long. Pure: the time is handed in."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from splitlearn_comm import ResourceExhaustedError

T = TypeVar("T")
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class AdapterLimits:
    """What published adapters may be."""

    max_per_client: int = 8
    """How many one client may have."""
    max_in_all: int = 64
    """How many there may be."""
    max_bytes_per_client: int = 64 * MIB
    """Bytes of the values of one client's."""
    max_bytes_in_all: int = 256 * MIB
    """Bytes of the values of all."""
    idle_timeout_s: float = 3600.0
    """One that nobody has computed with for so long is freed."""


@dataclass
class _Kept(Generic[T]):
    what: T
    num_bytes: int
    used_s: float


class AdapterShelf(Generic[T]):
    """What clients have published, by client and name.

    Args:
        limits: how much.
    """

    def __init__(self, limits: AdapterLimits) -> None:
        self._limits = limits
        self._kept: dict[tuple[str, str], _Kept[T]] = {}

    def __repr__(self) -> str:
        return f"<{len(self._kept)} adapters, {sum(kept.num_bytes for kept in self._kept.values())} bytes>"

    def __len__(self) -> int:
        return len(self._kept)

    def check_room(self, client: str, name: str, num_bytes: int) -> None:
        """Check that there is room for an adapter, that of the same name aside.

        Raises:
            ResourceExhaustedError: there is none.
        """
        limits = self._limits
        for whose, owner, most, most_bytes in (
            ("this client", client, limits.max_per_client, limits.max_bytes_per_client),
            ("all clients", None, limits.max_in_all, limits.max_bytes_in_all),
        ):
            others = [kept for key, kept in self._kept.items() if owner in (None, key[0]) and key != (client, name)]
            if len(others) >= most:
                raise _no_room(f"{len(others)} adapters of {whose} are published here, at most {most} are kept")
            held = sum(kept.num_bytes for kept in others)
            if held + num_bytes > most_bytes:
                raise _no_room(
                    f"the adapters of {whose} would have {held + num_bytes} bytes, at most {most_bytes} are kept"
                )

    def put(self, client: str, name: str, what: T, num_bytes: int, now_s: float) -> None:
        """Keep an adapter, in place of what the client had under the name; raises as `check_room`."""
        self.check_room(client, name, num_bytes)
        self._kept[client, name] = _Kept(what, num_bytes, now_s)

    def of(self, client: str, name: str, now_s: float) -> T | None:
        """Return an adapter, which is used now; None if the client has none of that name."""
        kept = self._kept.get((client, name))
        if kept is None:
            return None
        kept.used_s = now_s
        return kept.what

    def remove(self, client: str, name: str) -> T | None:
        """Forget an adapter and return it; None if the client has none of that name."""
        kept = self._kept.pop((client, name), None)
        return None if kept is None else kept.what

    def expire(self, now_s: float) -> list[T]:
        """Forget those that nobody has used for too long, and return them."""
        over = [key for key, kept in self._kept.items() if now_s - kept.used_s > self._limits.idle_timeout_s]
        return [self._kept.pop(key).what for key in over]

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def _no_room(reason: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(f"{reason}; free some that are needed no more")
