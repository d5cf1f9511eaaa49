"""What a model's process and the serving process say to each other, as bytes in a stream: pure.

A frame is a header and a payload. The payloads are Comm's messages wherever there is one that fits.
"""

import struct
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What a frame is about, and what is in it."""

    # To the model's process
    LOAD = 1
    """What to load: a `ModelSpec` as JSON."""
    ADMIT = 2
    """There is room for it: go on. Empty."""
    OPEN = 3
    """Make room for a session: its client and the adapter that it computes with, as JSON."""
    STEP = 4
    """A step of a session: `SessionRequest`."""
    COMPUTE = 5
    """A stateless call: `ComputeRequest`."""
    EXPORT = 6
    """Give a session's state out. Empty."""
    IMPORT = 7
    """Put a state into a session: `SessionRequest`."""
    CLOSE = 8
    """Free a session. Empty."""
    END = 9
    """Stop, in order. Empty."""
    FORWARD = 10
    """A step of a session: a few hidden states without padding, as in `process_tensors`."""
    READ = 11
    """Say what was done up to now. Empty."""
    ADAPTED = 12
    """A stateless call with an adapter: whose it is, as `named`, then `ComputeRequest`."""
    # To the serving process
    PROGRESS = 32
    """How far loading is: JSON."""
    SIZED = 33
    """How large the model will be; answered by ADMIT: JSON."""
    READY = 34
    """It can be used: `ServiceInfo`."""
    LOAD_FAILED = 35
    """It cannot be loaded: JSON."""
    DONE = 36
    """The answer to a call: `SessionResponse`, to COMPUTE `ComputeResponse`."""
    REFUSED = 37
    """A call that was refused, nothing has changed: `SessionResponse` with an error."""
    FAILED = 38
    """A call that failed half-way: a text for the log."""
    OUTPUT = 39
    """The answer to a step: a few hidden states, as in `process_tensors`."""
    READING = 40
    """The answer to READ: an `EngineReading` as JSON."""


class Frame(NamedTuple):
    """One message."""

    kind: Kind
    call: int
    """Number of the call it asks or answers; 0 for none."""
    session: int
    """Number of the session it is about; 0 for none."""
    payload: bytes
    sent_s: float = 0.0
    """When it was sent, on `time.perf_counter`, which all processes of a machine share; 0 where that is not told."""
    began_s: float = 0.0
    """Of an answer to a step: when its turn came, on the same clock; 0 where that is not told."""


HEADER = struct.Struct("<QddIIB")
"""Bytes of the payload, when it was sent, when the turn came, number of the call, number of the session, kind."""


def header_of(
    kind: Kind, num_bytes: int, call: int = 0, session: int = 0, sent_s: float = 0.0, began_s: float = 0.0
) -> bytes:
    """Return what stands before a payload of so many bytes."""
    return HEADER.pack(num_bytes, sent_s, began_s, call, session, kind)


_LENGTH = struct.Struct("<I")


def named(client: str, payload: bytes) -> bytes:
    """Return a payload behind the name of a client."""
    name = client.encode()
    return b"".join((_LENGTH.pack(len(name)), name, payload))


def unnamed(data: bytes) -> tuple[str, bytes]:
    """Return the name of the client before a payload, and the payload."""
    begin = _LENGTH.size
    end = begin + int(_LENGTH.unpack_from(data)[0])
    return data[begin:end].decode(), data[end:]


class FrameReader:
    """Takes frames out of a stream of bytes, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._header = b""
        self._pieces: list[bytes] = []
        self._missing_bytes = HEADER.size

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that this piece completes."""
        frames: list[Frame] = []
        at = 0
        while self._missing_bytes <= len(data) - at:
            piece = data[at : at + self._missing_bytes]
            at += self._missing_bytes
            if len(self._header) < HEADER.size:
                self._header += piece
                self._missing_bytes = HEADER.unpack(self._header)[0]
            else:
                self._pieces.append(piece)
                frames.append(self._complete())
        self._keep(data[at:])
        return frames

    def _complete(self) -> Frame:
        _, sent_s, began_s, call, session, kind = HEADER.unpack(self._header)
        payload = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._header, self._pieces, self._missing_bytes = b"", [], HEADER.size
        return Frame(Kind(kind), call, session, payload, sent_s, began_s)

    def _keep(self, rest: bytes) -> None:
        self._missing_bytes -= len(rest)
        if len(self._header) < HEADER.size:
            self._header += rest
        elif rest:
            self._pieces.append(rest)
