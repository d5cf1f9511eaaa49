"""What is raised where a client or a session was closed while it was used."""

from __future__ import annotations

import asyncio

from splitlearn_comm.errors import ClientClosedError


def closed_here() -> ClientClosedError:
    """The error of a call, or a step, that meets a client or a session closed in this process."""
    return ClientClosedError(
        "the client or the session was closed here, by this program: nothing more is sent and no answer is waited for; "
        "make another client, or open another session, and close it when its work is done"
    )


def is_cancelled_by_its_owner() -> bool:
    """Whether the task that runs was asked to end; else a `CancelledError` in it says that a call it awaits was."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
