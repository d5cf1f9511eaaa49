"""The door: every call passes here, whatever it calls, and gets a name, an owner and a place in its account."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.directory import Wanted
from splitlearn_comm.errors import AuthenticationError, CommError
from splitlearn_comm.logs import ABOUT, ids
from splitlearn_comm.protocol import MODEL_METADATA, REQUEST_ID_METADATA, VERSION_METADATA
from splitlearn_comm.server.faults import abort, logger
from splitlearn_comm.server.handlers import Behaviour, Context, Continuation, Handler, HandlerWraps
from splitlearn_comm.server.security.accounts import Accounts, ClientAccount
from splitlearn_comm.server.security.caller import CALLER, Caller, request_id_from
from splitlearn_comm.server.security.identity import Identity

HEALTH_PREFIX = "/grpc.health.v1.Health/"
REFLECTION_PREFIX = "/grpc.reflection."
FIRST_MESSAGE_S = 1.0
"""How long a stream that is to be refused may take to send something."""


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Asks each call who it is, and refuses it if it may not be or is one too many.

    Args:
        identity: Tells who a client is.
        accounts: What each client has.
        open_prefixes: Methods, by the beginning of their path, that need no token.
    """

    def __init__(self, identity: Identity, accounts: Accounts, open_prefixes: tuple[str, ...]) -> None:
        self._identity = identity
        self._accounts = accounts
        self._open_prefixes = open_prefixes
        self._wraps = HandlerWraps(self._wrapped)

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """The handler of a call with this guard before it; None where nothing is served."""
        return await self._wraps.of(continuation, handler_call_details)

    def _wrapped(self, handler: Any, behaviour: Behaviour, method: str) -> Behaviour:
        is_open = method.startswith(self._open_prefixes)
        is_stream = handler.request_streaming or handler.response_streaming

        async def serve(request: Any, context: Context) -> Any:
            try:
                caller = self._admit(request, context, is_open, is_stream)
            except CommError as error:
                if handler.request_streaming:
                    await _first_message(context)
                await abort(context, error)
            return await _as(caller, behaviour, request, context)

        return serve

    def _admit(self, request: Any, context: Context, is_open: bool, is_stream: bool) -> Caller:
        """Name a call and begin it; raises as `_enter` does, with the name in the error."""
        metadata = dict(context.invocation_metadata() or ())
        request_id = request_id_from(metadata.get(REQUEST_ID_METADATA))
        try:
            account = self._enter(context, metadata, is_open, request)
        except CommError as error:
            error.request_id = request_id
            told = ids(request=request_id)
            logger.info("refused a call from %s (request %s): %s", context.peer(), request_id, error, extra=told)
            raise
        # Of a call that is one message the answer is the end.
        acquaintance = self._identity.acquaintance(metadata) if is_stream and not is_open else None
        return Caller(account, request_id, _wanted_by(metadata), acquaintance)

    def _enter(self, context: Context, metadata: dict[str, Any], is_open: bool, request: Any) -> ClientAccount:
        """Begin a call on its client's account.

        Raises:
            AuthenticationError: Nobody knows who it is.
            ResourceExhaustedError: It is one too many.
        """
        now = time.monotonic()
        try:
            name, is_address = self._identity.of(context, metadata, is_open)
        except AuthenticationError:
            # Whoever tries tokens pays for it with his address.
            self._accounts.of(*self._identity.address_of(context), now).admit(0, now)
            raise
        account = self._accounts.of(name, is_address, now)
        # A stream is counted message by message.
        if isinstance(request, bytes):
            account.admit(len(request), now)
        account.begin_call()
        return account


async def _as(caller: Caller, behaviour: Behaviour, request: Any, context: Context) -> Any:
    mark, about = CALLER.set(caller), ABOUT.set(caller)
    try:
        return await behaviour(request, context)
    finally:
        CALLER.reset(mark)
        ABOUT.reset(about)
        caller.account.end_call()


async def _first_message(context: Context) -> None:
    """Let the first message of a stream come in before it is refused, for a moment.

    Where the refusal overtakes it, grpc.aio tells the client that writing failed, and not why.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(context.read(), FIRST_MESSAGE_S)


def _wanted_by(metadata: dict[str, Any]) -> Wanted:
    name, version = metadata.get(MODEL_METADATA, ""), metadata.get(VERSION_METADATA, "")
    return Wanted(name=name, version=version)
