"""What a service raises, as something that a server can go on after.

`sys.exit()` in a task of asyncio ends its event loop, and with it all that a server does; of a `StopIteration` a
coroutine would just end. Neither was meant by who called a function from another machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def contained(error: BaseException) -> Exception:
    """The error itself where it is an ordinary one, else a `RuntimeError` that says what it was."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    told = RuntimeError(f"the service raised {error!r}: expected an ordinary error, an Exception; the server goes on")
    told.__cause__ = error
    return told


def called(call: Callable[[], T]) -> T:
    """The result of a call; what it raises, ends of the process too, is an ordinary error."""
    try:
        return call()
    except BaseException as error:
        if (ordinary := contained(error)) is error:
            raise
        raise ordinary from error


async def awaited(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a coroutine function; what it raises is an ordinary error, but for its own cancellation."""
    try:
        return await call(*args, **kwargs)
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        raise contained(error) from error
