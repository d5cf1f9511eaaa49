"""How much one forward may hold, and how sessions share the trunk."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Limits of the engine; the defaults suit one or two cores, and a GPU takes more rows and tokens.

    Raises:
        ValueError: a limit that lets nothing through.
    """

    max_rows: int = 64
    """Rows of one forward that several sessions join; a session with more runs alone."""
    max_tokens: int = 512
    """Tokens of one forward, rows times length: a longer prompt runs in chunks even when nobody waits."""
    max_join_tokens: int = 8
    """A step of at most so many tokens joins others of the same length; a longer one is a prompt and runs alone."""
    min_chunk_tokens: int = 16
    """Tokens, rows times length, below which a chunk is not worth the reading of the weights."""
    chunk_share: float = 1.0
    """What a chunk of a prompt may cost, as a share of what the others' steps since the last chunk cost."""
    wait_share: float = 0.15
    """How long steps may wait for those that are about to come, as a share of what their forward costs."""
    active_s: float = 1.0
    """A session whose last step ended less than this long ago may step again any moment."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_tokens", "max_join_tokens", "min_chunk_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("chunk_share", "wait_share", "active_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
