"""Steps whose client does not wait for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from splitlearn_comm.errors import DeadlineExceededError
from splitlearn_comm.worker import DUE_S

T = TypeVar("T")


async def in_time(work: Awaitable[T], due_s: float) -> T:
    """Do what a host was asked for, unless nobody waits for it any more when its turn comes.

    Args:
        work: What a host does; one that waits for its turn on a `WorkerThread` is dropped there.
        due_s: Until when somebody waits, on the clock of `time.monotonic`.

    Raises:
        DeadlineExceededError: Its turn came too late; nothing was done.
    """
    mark = DUE_S.set(due_s)
    try:
        return await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling() or time.monotonic() < due_s:
            raise
        raise DeadlineExceededError(
            "the time that the client gave for the step was over before its turn came, and nothing was done: the "
            "server has much to do; give more time with timeout_s"
        ) from None
    finally:
        DUE_S.reset(mark)
