"""The log as lines of JSON for machines, or as text for people; with the ids of what it is about.

Ids are told by whoever logs (`extra=ids(session=...)`), and beside that read off the call that is being served. What
was sent, tensors and tokens, never comes into a log.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol, TextIO

FIELDS: Final = ("client", "request", "session", "model", "step")
"""Ids in a line, where there are any."""
FORMATS: Final = ("json", "text")
MAX_ID_CHARACTERS: Final = 128
"""Of an id; some are a peer's to choose."""
TEXT: Final = "%(levelname).1s %(asctime)s %(name)s: %(message)s"
_PREFIX: Final = "splitlearn_"


class HasIds(Protocol):
    """Something that a log line can be about."""

    def log_ids(self) -> Mapping[str, str | int]:
        """As of `ids`."""


ABOUT: ContextVar[HasIds | None] = ContextVar("splitlearn_about", default=None)
"""What is being done, in its task and in those it starts: of a server the call."""


def ids(**found: str | int | None) -> dict[str, str | int]:
    """What to give a logger as `extra=`.

    Args:
        **found: Ids by their fields; those that are None or empty are left out.

    Raises:
        ValueError: There is no such field.
    """
    if unknown := set(found) - set(FIELDS):
        raise ValueError(f"the ids of a log line are {', '.join(FIELDS)}; got {', '.join(sorted(unknown))}")
    return {_PREFIX + name: value for name, value in found.items() if value is not None and value != ""}


class IdFilter(logging.Filter):
    """Adds the ids of what is being done, as `ABOUT` says; drops nothing. For a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is not told yet."""
        about = ABOUT.get()
        if about is not None:
            for name, value in about.log_ids().items():
                vars(record).setdefault(name, value)
        return True


class JsonLines(logging.Formatter):
    """One object a line: `time` (UTC), `level`, `logger`, `message`, the ids, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids_of(vars(record)),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return json.dumps(fields, ensure_ascii=False)


def _ids_of(attributes: Mapping[str, Any]) -> dict[str, str | int]:
    found = {name: attributes[_PREFIX + name] for name in FIELDS if _PREFIX + name in attributes}
    return {name: value if isinstance(value, int) else str(value)[:MAX_ID_CHARACTERS] for name, value in found.items()}


def log_handler(form: str | None = None, stream: TextIO | None = None) -> logging.Handler:
    """A handler that writes lines to a stream.

    Args:
        form: `json` or `text`; None for text on a terminal and JSON elsewhere.
        stream: By default standard error.

    Raises:
        ValueError: There is no such form.
    """
    stream = stream or sys.stderr
    form = form or ("text" if stream.isatty() else "json")
    if form not in FORMATS:
        raise ValueError(f"a log is {' or '.join(FORMATS)}; got {form!r}")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT, "%T"))
    handler.addFilter(IdFilter())
    return handler


def configure_logging(level: str = "info", form: str | None = None, stream: TextIO | None = None) -> None:
    """Write the log of the whole program so; in place of how it was set up before.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: As of `log_handler`.
        stream: As of `log_handler`.

    Raises:
        ValueError: There is no such form, or no such level.
    """
    logging.basicConfig(level=level.upper(), handlers=[log_handler(form, stream)], force=True)
