"""Bearer tokens: who a client is, by a secret it sends with each call."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

from splitlearn_comm.server.security.watched import WatchedFiles

_HASHED = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
MIN_TOKEN_CHARACTERS = 16
"""Shorter secrets can be guessed."""


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens, one on each line, as `name:sha256:HEX` (the SHA-256 of the token) or `name:token`.

    Empty lines, and lines that begin with `#`, are passed over. It is read again when it changes.
    """

    path: str | PathLike[str]
    """Where it is; only the server's user should be able to read it."""


Tokens = TokenFile | Mapping[str, str]
"""Where the tokens are: a file, or a mapping of names to tokens (or to `sha256:HEX`)."""


class TokenBook:
    """Knows the tokens, as digests only.

    Args:
        tokens: Where they are.

    Raises:
        OSError: The file cannot be read.
        ValueError: There is none in it, or a name or token cannot be one. The message never holds a token.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._fixed: dict[str, bytes] = {}
        self._file: WatchedFiles[dict[str, bytes]] | None = None
        if isinstance(tokens, TokenFile):
            path = Path(tokens.path)
            self._file = WatchedFiles([path], lambda: _tokens_in(path))
        else:
            self._fixed = _digests(tokens.items())

    def name_of(self, token: str) -> str | None:
        """Whose token it is; None if nobody's."""
        return self._name_of(hashlib.sha256(token.encode()).digest())

    def acquaintance(self, token: str) -> Acquaintance:
        """Tells later whether the token still is whose it is now."""
        digest = hashlib.sha256(token.encode()).digest()
        return Acquaintance(self._num_changes, partial(self._name_of, digest))

    def _num_changes(self) -> int:
        if self._file is None:
            return 0
        self._file.current()
        return self._file.num_changes

    def _name_of(self, digest: bytes) -> str | None:
        found = None
        # All are looked at, each in constant time: how long it takes tells nothing.
        for name, known in (self._file.current() if self._file else self._fixed).items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


class Acquaintance:
    """Whether the token that a stream began with is known still, and under the same name.

    Args:
        num_changes: How often the tokens have changed up to now.
        name_now: Whose the token is now; asked only after a change.
    """

    def __init__(self, num_changes: Callable[[], int], name_now: Callable[[], str | None]) -> None:
        self._num_changes, self._name_now = num_changes, name_now
        self._seen, self._name = num_changes(), name_now()

    def is_over(self) -> bool:
        """Whether the token was taken out, or is another's now."""
        if (seen := self._num_changes()) != self._seen:
            self._seen = seen
            return self._name_now() != self._name
        return False


def _tokens_in(path: Path) -> dict[str, bytes]:
    try:
        return parse_tokens(path.read_text(encoding="utf-8"))
    except ValueError as error:
        # A text that is no UTF-8 would be quoted in it.
        reason = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"the token file {path}: {reason}") from None


def parse_tokens(text: str) -> dict[str, bytes]:
    """Names and SHA-256 digests in the text of a `TokenFile`.

    Raises:
        ValueError: As `TokenBook`; with the number of the line.
    """
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, token = line.strip().partition(":")
        if not colon:
            raise ValueError(f"line {number} of the tokens is no 'name:sha256:HEX' and no 'name:token'")
        pairs.append((name.strip(), token.strip()))
    return _digests(pairs)


def _digests(pairs: Iterable[tuple[str, str]]) -> dict[str, bytes]:
    digests: dict[str, bytes] = {}
    for name, token in pairs:
        if not name or ":" in name or name in digests:
            raise ValueError(f"each token needs a name of its own without a colon; came {name!r}, empty or twice")
        digests[name] = _digest(name, token)
    if not digests:
        raise ValueError("there are no tokens: nobody could call the server; give at least one, or leave tokens out")
    return digests


def _digest(name: str, token: str) -> bytes:
    if token.startswith(_HASHED):
        hexadecimal = token.removeprefix(_HASHED).lower()
        if not _DIGEST.fullmatch(hexadecimal):
            raise ValueError(
                f"the token of {name!r} begins with sha256: and goes on with something else than 64 digits"
            )
        return bytes.fromhex(hexadecimal)
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ValueError(
            f"the token of {name!r} has {len(token)} characters, expected at least {MIN_TOKEN_CHARACTERS}; "
            f"make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return hashlib.sha256(token.encode()).digest()
