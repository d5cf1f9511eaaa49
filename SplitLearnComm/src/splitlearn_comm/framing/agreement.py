"""Which codecs two sides agree on, as messages, and whether this side has them."""

from __future__ import annotations

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.codec import codec_for
from splitlearn_comm.errors import UnsupportedOperationError
from splitlearn_comm.messages import RAW_CODECS, Codecs


def encode_codecs(codecs: Codecs) -> pb.Codecs | None:
    """The message of the codecs of one role; None, which is raw, where nothing is coded."""
    return None if codecs == RAW_CODECS else pb.Codecs(to_server=codecs.to_server, to_client=codecs.to_client)


def codecs_of(message: pb.Codecs) -> Codecs:
    """The codecs in a message; raw for one that is absent."""
    return Codecs(message.to_server, message.to_client)


def check_codecs(role: str, codecs: Codecs) -> None:
    """Raise `UnsupportedOperationError` for codecs that this side has not, or not for that role."""
    for name in codecs.names():
        try:
            codec_for(role, name)
        except (ValueError, ImportError) as error:
            raise UnsupportedOperationError(f"this side cannot use the codec: {error}") from error
