"""A fuzz target for everything that reads bytes of a peer.

With atheris (https://github.com/google/atheris; `pip install atheris`, it is no requirement of anything here):

    python SplitLearnComm/fuzz/fuzz_messages.py -max_len=4096 -max_total_time=600 CORPUS

Without it `one_input` is an ordinary function, which the tests call.
"""

from __future__ import annotations

import sys

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import codec_names
from splitlearn_comm.errors import InvalidRequestError, MessageTooLargeError, UnsupportedOperationError
from splitlearn_comm.framing import calls, service, steps
from splitlearn_comm.framing.fields import parse
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.framing.locate import locate

REFUSALS = (InvalidRequestError, MessageTooLargeError, UnsupportedOperationError)
MAX_BYTES = 1 << 20
AGREED = tuple(codec_names()[1:])


def one_input(data: bytes) -> None:
    """Read the bytes in each way there is; raises if one ends otherwise than with a result or a refusal.

    The first byte chooses between no codecs and all, and how many messages the rest is cut into.
    """
    if not data:
        return
    codecs = AGREED if data[0] & 1 else ()
    body = data[1:]
    for read in (
        calls.decode_call,
        calls.decode_result,
        service.decode_info,
        service.decode_health,
        service.decode_health_question,
    ):
        _refused(read, body)
    for direction in ("request", "answer"):
        inbox = Inbox(MAX_BYTES)
        inbox.codecs = inbox.kv_codecs = codecs
        for piece in _cut(body, 1 + (data[0] >> 1) % 4):
            _refused(getattr(inbox, direction), piece)
    _located_as_protobuf_says(body)


def _refused(read: object, data: bytes) -> bool:
    try:
        read(data)  # type: ignore[operator]
    except REFUSALS:
        return True
    return False


def _cut(data: bytes, num_pieces: int) -> list[bytes]:
    size = -(-len(data) // num_pieces) or 1
    return [data[at : at + size] for at in range(0, len(data), size)]


def _located_as_protobuf_says(data: bytes) -> None:
    """What is found by its place in the buffer is what protobuf reads there, wherever protobuf can read it."""
    located = locate(data, (pb.ComputeRequest.TENSOR_FIELD_NUMBER, pb.TensorData.DATA_FIELD_NUMBER))
    if located is None:
        return
    try:
        message = parse(pb.ComputeRequest, data)
    except InvalidRequestError:
        return
    assert message.tensor.data == data[located.begin : located.end], "another reader sees another tensor"


def main() -> None:
    """Fuzz until told otherwise."""
    try:
        import atheris
    except ImportError as error:
        raise SystemExit(
            "fuzzing needs atheris: pip install atheris (Linux, and a Python it has wheels for)"
        ) from error
    # What is to be covered is our reading of bytes; protobuf has fuzzers of its own.
    for module in (calls, steps, service, sys.modules[locate.__module__]):
        for name, thing in vars(module).items():
            if (
                getattr(thing, "__module__", None) == module.__name__
                and callable(thing)
                and not isinstance(thing, type)
            ):
                setattr(module, name, atheris.instrument_func(thing))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
