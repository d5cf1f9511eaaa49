"""What leaves the server when something goes wrong."""

from __future__ import annotations

import logging
import math
import re
import traceback
from typing import Any, NoReturn

import grpc.aio

from splitlearn_comm.errors import CommError, RemoteInternalError, ResourceExhaustedError
from splitlearn_comm.logs import ids
from splitlearn_comm.protocol import KIND_METADATA, PUSHBACK_METADATA, REQUEST_ID_METADATA
from splitlearn_comm.server.security.caller import current_request_id

logger = logging.getLogger("splitlearn_comm.server")
MAX_CHARACTERS = 1000
"""Of an error's message."""
# What a tensor, an array or a list of fractions looks like when it is printed.
_CONTENTS = re.compile(r"(?:tensor|array)\(.*?\)|\[[^\]]*\d\.\d[^\]]*\]+|-?\d+\.\d{3,}(?:e[-+]?\d+)?", re.DOTALL)


def as_comm_error(error: Exception, doing: str, *, session: str = "", step: int | None = None) -> CommError:
    """The error a client may see: a refusal as it is, anything else as one fixed sentence; both logged with the id of
    the call.

    Args:
        error: What was raised.
        doing: What the server was doing, for the log.
        session: Of which session it was, for the log.
        step: And of which step.
    """
    told = ids(session=session, step=step)
    request_id = current_request_id()
    if isinstance(error, CommError):
        error.request_id = request_id
        error.args = (shortened(str(error)),)
        kind, message = type(error).__name__, line(str(error))
        logger.info("refused %s (request %s): %s: %s", line(doing), request_id, kind, message, extra=told)
        return error
    logger.error("failed %s (request %s)\n%s", line(doing), request_id, told_without_contents(error), extra=told)
    sentence = f"the server failed; its log has the reason under request id {request_id}"
    return RemoteInternalError(sentence, request_id=request_id)


def shortened(text: str) -> str:
    """A text cut where a peer made it long: names and lists that a client sent are in its refusals."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} … ({len(text)} characters)"


def line(text: str) -> str:
    """A text for one line of the log, whatever a client put into it."""
    return "".join(character if character.isprintable() else "?" for character in text)


def told_without_contents(error: Exception) -> str:
    """An error with its traceback, less what may be the contents of tensors: those are nobody's business but the
    client's."""
    return _CONTENTS.sub("(contents left out)", "".join(traceback.format_exception(error))).rstrip()


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: CommError) -> NoReturn:
    """End a call with an error; its kind, its request id and when to ask again go in the trailing metadata."""
    metadata = [(KIND_METADATA, type(error).__name__), (REQUEST_ID_METADATA, error.request_id or "")]
    if isinstance(error, ResourceExhaustedError) and error.retry_after_s is not None:
        metadata.append((PUSHBACK_METADATA, str(math.ceil(error.retry_after_s * 1000))))
    await context.abort(error.code, str(error), tuple(metadata))
    raise AssertionError("abort returned")
