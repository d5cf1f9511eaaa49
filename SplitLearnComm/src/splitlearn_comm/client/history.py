"""What a session has sent, so that it can be said again to another server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from splitlearn_comm.framing.chunks import ChunkedMessage, Outgoing


class History:
    """The messages of a session's steps, in order, as long as they fit.

    Args:
        max_bytes: Memory for them; 0 to keep none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._messages: list[Outgoing] = []
        self._num_bytes = 0
        self.is_complete = max_bytes > 0
        """Whether all that was sent is here."""

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Outgoing]:
        return iter(self._messages)

    def add(self, message: Outgoing) -> None:
        """Keep the message of a step that was done; when there is no room for it, give all up."""
        if not self.is_complete:
            return
        self._num_bytes += len(message)
        if self._num_bytes > self._max_bytes:
            self.give_up()
        else:
            self._messages.append(own(message))

    def give_up(self) -> None:
        """Forget all, for good."""
        self._messages.clear()
        self.is_complete = False


def own(message: Outgoing) -> Outgoing:
    """A message that shares no memory with the tensor it was made of, which its owner may change."""
    return replace(message, data=memoryview(bytes(message.data))) if isinstance(message, ChunkedMessage) else message
