"""Where files of the server lie is told to those who may operate it, and to nobody else."""

from __future__ import annotations

import re
from contextvars import ContextVar
from pathlib import Path, PurePath

MAY_OPERATE: ContextVar[bool] = ContextVar("splitlearn_may_operate", default=False)
"""Whether the client of the call that is being served may operate the server."""

_PATH = re.compile(
    r"""(?P<quote>['"])(?:~|\.{1,2})?/[^'"]*(?P=quote)  # quoted, it may hold anything
    | (?<![\w:/.~-])(?:~|\.{1,2})?/[^\s'",;:()\[\]]+""",
    re.VERBOSE,
)


def told(text: str, *models: str) -> str:
    """Return a text as the client of the call that is being served may see it; arguments as of
    `without_directories`."""
    return text if MAY_OPERATE.get() else without_directories(text, *models)


def without_directories(text: str, *models: str) -> str:
    """Return a text in which of each path only the last part is left.

    Args:
        text: for people.
        models: what it may be about: hub ids, which stay as they are, and directories.
    """
    if "/" not in text:
        return text
    for model in models:
        if model in text and Path(model).expanduser().exists():
            text = text.replace(model, PurePath(model).name)
    return _PATH.sub(_last_part, text)


def _last_part(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    return quote + PurePath(match[0].strip(quote) if quote else match[0]).name + quote
