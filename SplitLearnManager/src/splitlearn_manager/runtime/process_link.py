"""A stream of frames without an event loop: what a model's process speaks while it loads."""

import os
import select
import shutil
import socket
import tempfile
import threading
from typing import NoReturn

from splitlearn_manager.runtime.process_frames import Frame, FrameReader, Kind, header_of

_HANGUP = getattr(select, "POLLRDHUP", 0)  # elsewhere than on Linux a hang-up is reported unasked
_RECEIVED_BYTES = 1 << 16
_LEAVING = threading.Lock()


class BlockingLink:
    """Sends and receives frames over a socket, waiting for each.

    Args:
        connection: a connected stream socket; not closed here.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = FrameReader()
        self._received: list[Frame] = []

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame."""
        self._connection.sendall(header_of(kind, len(payload)) + payload)

    def receive(self, kind: Kind) -> Frame:
        """Wait for the next frame, which has to be of this kind.

        Raises:
            ConnectionError: the other end is gone.
        """
        while not self._received:
            data = self._connection.recv(_RECEIVED_BYTES)
            if not data:
                raise ConnectionError("the serving process has hung up")
            self._received += self._reader.feed(data)
        frame = self._received.pop(0)
        assert frame.kind is kind, f"expected {kind!r} here, came {frame.kind!r}"
        return frame


def end_with(connection: socket.socket) -> None:
    """End this process at once when the other end of the connection is gone, whatever it is doing then.

    A process whose parent was killed would otherwise go on loading, or wait for steps, for ever.
    """
    # A descriptor of its own: the other is closed, and its number used again, in an orderly end.
    descriptor = os.dup(connection.fileno())
    threading.Thread(target=_watch, args=(descriptor,), name="parent", daemon=True).start()


def _watch(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, _HANGUP)
    poll.poll()
    leave()


def leave() -> NoReturn:
    """End this process, whose parent is gone, and what it has written."""
    _LEAVING.acquire()  # for good: of two who notice, the second would end the process while the first still tidies up
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)
    os._exit(1)
