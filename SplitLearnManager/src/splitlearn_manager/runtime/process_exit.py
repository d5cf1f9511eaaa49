"""What a process says, and how it ended, in words."""

import asyncio
import logging
import signal
from collections import deque

from splitlearn_comm.logs import ids

logger = logging.getLogger("splitlearn_manager.models")

MAX_LINE_CHARACTERS = 500
NUM_LAST_LINES = 3
_READ_BYTES = 1 << 16
_LEVELS = {name: level for name, level in logging.getLevelNamesMapping().items() if level > logging.INFO}


class Output:
    """Puts the lines that a process writes into this one's log, and keeps the last.

    Args:
        label: whose they are.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._unfinished = b""
        self._last: deque[str] = deque(maxlen=NUM_LAST_LINES)

    async def read(self, process: asyncio.subprocess.Process) -> None:
        """Read until the process closes its output."""
        assert process.stdout is not None
        while data := await process.stdout.read(_READ_BYTES):
            self.feed(data)
        self.feed(b"\n")

    def feed(self, data: bytes) -> None:
        """Take a piece of what was written."""
        *lines, unfinished = (self._unfinished + data).split(b"\n")
        self._unfinished = unfinished[:_READ_BYTES]
        for line in lines:
            self._take(line.decode(errors="replace").strip())

    def _take(self, line: str) -> None:
        if line:
            shown = line if len(line) <= MAX_LINE_CHARACTERS else f"{line[:MAX_LINE_CHARACTERS]} …"
            self._last.append(shown)
            level = _LEVELS.get(line.partition(" ")[0], logging.INFO)
            logger.log(level, "%s: %s", self._label, shown, extra=ids(model=self._label))

    def last_words(self) -> tuple[str, ...]:
        """Return the last lines."""
        return tuple(self._last)


def described(returncode: int, last_words: tuple[str, ...]) -> str:
    """Return how a process ended: "ended with status 1, last saying: …", on one line.

    Args:
        returncode: its exit status; negative the number of the signal that killed it.
        last_words: lines that it wrote last.
    """
    if returncode == 0:
        return "ended"
    said = f", last saying: {' | '.join(last_words)}" if last_words else ""
    if returncode < 0:
        return f"was killed by signal {-returncode} ({_name_of(-returncode)}){said}"
    return f"ended with status {returncode}{said}"


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "of no name"
