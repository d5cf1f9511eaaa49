"""What is slow to find out and does not change: digests of files, remembered in the user's cache directory."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

MEMORY_FILE = "digests.json"


def cache_directory() -> Path:
    """Return where SplitLearn remembers things: `$SPLITLEARN_CACHE`, else `splitlearn` in the user's cache."""
    if chosen := os.environ.get("SPLITLEARN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitlearn"


def remembered(key: str, compute: Callable[[], str]) -> str:
    """Return the text remembered under a key, computing it the first time.

    A cache directory that cannot be read or written only costs the computation again.
    """
    known = _read()
    if key not in known:
        known[key] = compute()
        _write({**_read(), key: known[key]})
    return known[key]


def _read() -> dict[str, str]:
    try:
        known = json.loads((cache_directory() / MEMORY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=MEMORY_FILE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(known, file)
        Path(temporary).replace(directory / MEMORY_FILE)
