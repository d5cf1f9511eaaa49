"""Putting something before the handler of a call, whichever kind of call it is."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Any]
# The stubs know types as generic that are not at run time.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
ServerInterceptor: TypeAlias = "grpc.aio.ServerInterceptor[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Wrap: TypeAlias = "Callable[[Handler, Behaviour, str], Behaviour]"
"""Of a handler, what it does, as a coroutine function, and the method's name makes what is to be done instead."""


class HandlerWraps:
    """The handlers of a server, wrapped; made once for each.

    Args:
        wrap: Makes what is done instead.
    """

    def __init__(self, wrap: Wrap) -> None:
        self._wrap = wrap
        self._made: dict[str, tuple[Handler, Handler]] = {}

    async def of(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call, wrapped; None where nothing is served. What an interceptor's `intercept_service`
        returns."""
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method
        # An interceptor further in may answer each call with another handler.
        known = self._made.get(method)
        if known is None or known[0] is not handler:
            known = self._made[method] = (handler, self._made_of(handler, method))
        return known[1]

    def _made_of(self, handler: Any, method: str) -> Handler:
        kind = f"{_word(handler.request_streaming)}_{_word(handler.response_streaming)}"
        behaviour = self._wrap(handler, _as_coroutine(getattr(handler, kind)), method)
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        made: Handler = make(behaviour, handler.request_deserializer, handler.response_serializer)
        return made


def _word(is_stream: bool) -> str:
    return "stream" if is_stream else "unary"


def _as_coroutine(behaviour: Behaviour) -> Behaviour:
    """A handler that writes its answers where gRPC's own would yield them; others are left as they are."""
    if not inspect.isasyncgenfunction(behaviour):
        return behaviour

    async def write_all(request: Any, context: Context) -> None:
        async for message in behaviour(request, context):
            await context.write(message)

    return write_all
