"""Files that are read again when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from os import PathLike, stat
from typing import Generic, TypeVar

logger = logging.getLogger("splitlearn_comm.server")
T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int], ...]


class WatchedFiles(Generic[T]):
    """What is made of some files, made again after they changed.

    Args:
        paths: The files; each is looked at (one `stat`) whenever `current` is asked.
        read: Reads them all and makes something of them; raises OSError or ValueError if it cannot.

    Raises:
        OSError: A file cannot be read, the first time.
        ValueError: What is in it makes no sense, the first time.
    """

    def __init__(self, paths: Sequence[str | PathLike[str]], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._stamp = self._look()
        self._value = read()
        self.num_changes = 0
        """How often they were read again and made sense."""

    def current(self) -> T:
        """What the files hold now; while they are broken or gone, what they held before, and the log says so once."""
        try:
            stamp = self._look()
        except OSError as error:
            stamp = ()
            problem: Exception | None = error
        else:
            problem = None
        if stamp != self._stamp:
            self._stamp = stamp
            self._renew(problem)
        return self._value

    def _renew(self, problem: Exception | None) -> None:
        shown = ", ".join(str(path) for path in self._paths)
        try:
            if problem is not None:
                raise problem
            self._value = self._read()
        except (OSError, ValueError) as error:
            logger.error("cannot use %s as changed, what was there before still counts: %s", shown, error)
        else:
            self.num_changes += 1
            logger.info("read %s again, changed", shown)

    def _look(self) -> _Stamp:
        return tuple((found.st_mtime_ns, found.st_size, found.st_ino) for found in map(stat, self._paths))
