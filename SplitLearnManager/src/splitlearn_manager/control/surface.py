"""The control surface: its calls, each behind the same door as all others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from splitlearn_comm import CommError, InvalidRequestError
from splitlearn_comm.protocol import KIND_METADATA, REQUEST_ID_METADATA
from splitlearn_comm.server.faults import abort, as_comm_error, logger, shortened
from splitlearn_comm.server.handlers import Continuation, Handler
from splitlearn_comm.server.security.caller import current_request_id
from splitlearn_manager.control.discretion import MAY_OPERATE
from splitlearn_manager.control.door import OperatorDoor
from splitlearn_manager.errors import ManagerError, ModelFaultError

MAX_REQUEST_BYTES = 64 * 1024
"""No call of an operator needs more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One call."""

    path: str
    """As gRPC writes it: `/package.Service/Method`."""
    request: type[Message]
    answer: Callable[[Any], Awaitable[Message]]
    """Takes the request, returns the response."""
    is_for_operators: bool = False

    @property
    def service(self) -> ServiceDescriptor:
        """The service it belongs to."""
        file: Any = self.request.DESCRIPTOR.file
        found: ServiceDescriptor = file.services_by_name[self.path.split("/")[1].rpartition(".")[2]]
        return found


class ControlSurface(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers its own methods, and hands all other calls on. Stands behind the door of the server.

    Args:
        methods: what it answers.
        door: who may call those for operators.
    """

    def __init__(self, methods: tuple[Method, ...], door: OperatorDoor) -> None:
        self._door = door
        # No deserialisers: a message that cannot be parsed is then refused like any other wrong one.
        unary: Any = grpc.unary_unary_rpc_method_handler
        self._handlers: dict[str, Handler] = {method.path: unary(self._serving(method)) for method in methods}

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler of a call."""
        return self._handlers.get(handler_call_details.method) or await continuation(handler_call_details)

    def _serving(self, method: Method) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def serve(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                if method.is_for_operators:
                    self._door.check(context)
                MAY_OPERATE.set(self._door.refusal(context) is None)  # of the call's own task
                response = await method.answer(parsed(method.request, data))
            except Exception as error:
                await refuse(context, error, f"a call of {method.path}")
            return response.SerializeToString()

        return serve


def parsed(kind: type[Message], data: bytes) -> Message:
    """Return a message. Raises `InvalidRequestError` (of splitlearn_comm) for bytes that are none."""
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidRequestError(f"expected a request of at most {MAX_REQUEST_BYTES} bytes, came {len(data)}")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"what came is no {kind.DESCRIPTOR.full_name}: {error}") from error


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: Exception, doing: str) -> NoReturn:
    """End a call with an error: one line, with the code of its kind."""
    if isinstance(error, ManagerError) and not isinstance(error, ModelFaultError):
        request_id, kind = current_request_id(), type(error).__name__
        message = " ".join(shortened(str(error)).split())
        logger.info("refused %s (request %s): %s: %s", doing, request_id, kind, message)
        await context.abort(error.code, message, ((KIND_METADATA, kind), (REQUEST_ID_METADATA, request_id)))
    refusal: CommError = as_comm_error(error, doing)
    await abort(context, refusal)
