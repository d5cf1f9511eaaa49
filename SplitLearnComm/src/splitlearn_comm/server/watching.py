"""Tells an observer of the calls that a server serves, refused ones included."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.observer import CallSummary, ObservedCall, Observer
from splitlearn_comm.server.handlers import Behaviour, Context, Continuation, Handler, HandlerWraps


@dataclass(slots=True)
class ServedCall:
    """A call that is being served, and watched."""

    observed: ObservedCall
    """Is told of it."""
    is_done: bool = False
    """Whether its client has what it wanted: to cancel it then is how a client leaves."""


SERVED: ContextVar[ServedCall | None] = ContextVar("splitlearn_served", default=None)
"""The call that is being served, in its task and in those it starts; None where nobody watches."""

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Watch(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before everything else, and tells how each call ended.

    Args:
        observer: Is told.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._wraps = HandlerWraps(self._wrapped)

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """The handler of a call, watched; None where nothing is served."""
        return await self._wraps.of(continuation, handler_call_details)

    def _wrapped(self, _: Handler, behaviour: Behaviour, method: str) -> Behaviour:
        async def serve(request: Any, context: Context) -> Any:
            began_s = time.perf_counter()
            observed = self._observer.on_call(method, tuple(context.invocation_metadata() or ()))
            served = ServedCall(observed)
            mark = SERVED.set(served)
            answer, code = None, grpc.StatusCode.UNKNOWN
            try:
                answer = await behaviour(request, context)
                code = _code_of(context, grpc.StatusCode.OK)
            except asyncio.CancelledError:
                code = grpc.StatusCode.OK if served.is_done else grpc.StatusCode.CANCELLED
                raise
            except BaseException:
                code = _code_of(context, grpc.StatusCode.UNKNOWN)
                raise
            finally:
                SERVED.reset(mark)
                observed.on_end(
                    CallSummary(
                        code=code,
                        seconds=time.perf_counter() - began_s,
                        bytes_received=_size(request),
                        bytes_sent=_size(answer),
                    )
                )
            return answer

        return serve


def _code_of(context: Context, otherwise: grpc.StatusCode) -> grpc.StatusCode:
    """The status a handler has set; what it is otherwise if it has set none."""
    told: Any = context.code()
    if not told or told is grpc.StatusCode.OK:
        return otherwise
    return told if isinstance(told, grpc.StatusCode) else _CODES.get(told, grpc.StatusCode.UNKNOWN)


def _size(message: Any) -> int:
    """Bytes of a unary call's message; 0 for none, and for the requests of a stream."""
    if isinstance(message, bytes):
        return len(message)
    measure = getattr(message, "ByteSize", None)
    return int(measure()) if measure else 0
