"""How much the caches of all sessions hold, and whether a step still fits. Pure: decided before a step runs."""

from dataclasses import dataclass
from typing import NamedTuple

from splitlearn_comm import Action, CacheUse, Crop, Forward, Reorder, ResourceExhaustedError

ASK_AGAIN_S = 1.0
"""When to ask again for room that gets free when others end."""


@dataclass(frozen=True, kw_only=True)
class CacheLimits:
    """What the caches of all sessions of one model may hold together; None for no limit."""

    max_tokens: int | None = None
    """Tokens, rows times length."""
    max_bytes: int | None = None
    """Bytes of keys, values and states."""


class Extent(NamedTuple):
    """How much one session's cache holds."""

    rows: int = 0
    """Rows of its last forward."""
    length: int = 0
    """Tokens of each."""

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return self.rows * self.length


class CacheBook:
    """Tokens in the cache of each session, as its steps make them.

    Args:
        limits: what all may hold together.
        bytes_per_token: what a token of one row takes.
    """

    def __init__(self, limits: CacheLimits, bytes_per_token: int) -> None:
        self._limits = limits
        self._bytes_per_token = bytes_per_token
        self._entries: dict[str, Extent] = {}
        self._tokens = 0

    def __repr__(self) -> str:
        return f"<{len(self._entries)} sessions, {self._tokens} tokens, {self.num_bytes} bytes>"

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_tokens(self) -> int:
        """Tokens, rows times length, of all sessions."""
        return self._tokens

    @property
    def num_bytes(self) -> int:
        """What they take; more may be set aside for tokens to come."""
        return self._tokens * self._bytes_per_token

    def use(self) -> CacheUse:
        """What they take and may take, in bytes; a limit in tokens counts as the bytes of so many."""
        limits = self._limits
        in_tokens = None if limits.max_tokens is None else limits.max_tokens * self._bytes_per_token
        known = [limit for limit in (limits.max_bytes, in_tokens) if limit is not None]
        return CacheUse(num_bytes=self.num_bytes, limit_bytes=min(known, default=0))

    def open(self, session_id: str) -> None:
        """Add a session without tokens."""
        self._entries[session_id] = Extent()

    def close(self, session_id: str) -> None:
        """Forget a session, if it is there."""
        entry = self._entries.pop(session_id, None)
        if entry is not None:
            self._tokens -= entry.tokens

    def close_all(self) -> tuple[str, ...]:
        """Forget all sessions; return their names."""
        session_ids = tuple(self._entries)
        self._entries.clear()
        self._tokens = 0
        return session_ids

    def admit(self, session_id: str, action: Action) -> Extent:
        """Count what a step of an open session will add or take away; return what it held before.

        Raises:
            ResourceExhaustedError: there is no room for it; nothing is counted then.
        """
        before = self._entries[session_id]
        rows, length = before
        match action:
            case Forward(hidden):
                rows, length = hidden.shape[0], length + hidden.shape[1]
            case Reorder(indices):
                rows = len(indices)
            case Crop(num_tokens):
                length = max(0, length - num_tokens)
        self.resize(session_id, rows, length)
        return before

    def put_back(self, session_id: str, before: Extent) -> None:
        """Count a session, if it is open, as what it held before a step that was not done."""
        entry = self._entries.get(session_id)
        if entry is not None:
            self._tokens += before.tokens - entry.tokens
            self._entries[session_id] = before

    def resize(self, session_id: str, rows: int, length: int) -> None:
        """Count a session as so many rows of so many tokens.

        Raises:
            ResourceExhaustedError: there is no room for it; nothing is counted then.
        """
        entry = self._entries[session_id]
        more = rows * length - entry.tokens
        if more > 0:
            self._check(more)
        self._tokens += more
        self._entries[session_id] = Extent(rows, length)

    def _check(self, more: int) -> None:
        tokens = self._tokens + more
        wanted = {"max_tokens": tokens, "max_bytes": tokens * self._bytes_per_token}
        for name, amount in wanted.items():
            limit = getattr(self._limits, name)
            if limit is not None and amount > limit:
                unit = name.removeprefix("max_")
                raise ResourceExhaustedError(
                    f"the caches of {len(self._entries)} sessions would hold {amount} {unit}, and the server keeps at "
                    f"most {limit} of them; try again when others have ended, or send a smaller batch or a shorter "
                    f"sequence",
                    retry_after_s=ASK_AGAIN_S,
                )
