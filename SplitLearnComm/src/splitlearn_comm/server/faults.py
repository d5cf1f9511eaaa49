"""What leaves the server when something goes wrong."""

from __future__ import annotations

import logging
import uuid

from splitlearn_comm.errors import CommError, RemoteInternalError

logger = logging.getLogger("splitlearn_comm.server")


def as_comm_error(error: Exception, doing: str) -> CommError:
    """The error a client may see: a refusal as it is, anything else as one fixed sentence; both logged with an id.

    Args:
        error: What was raised.
        doing: What the server was doing, for the log.
    """
    request_id = uuid.uuid4().hex[:16]
    if isinstance(error, CommError):
        error.request_id = request_id
        logger.info("refused %s (request %s): %s: %s", doing, request_id, type(error).__name__, error)
        return error
    logger.error("failed %s (request %s)", doing, request_id, exc_info=error)
    sentence = f"the server failed; its log has the reason under request id {request_id}"
    return RemoteInternalError(sentence, request_id=request_id)
