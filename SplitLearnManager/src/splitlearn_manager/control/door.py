"""Who may load, unload and drain."""

from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

import grpc.aio

from splitlearn_comm import PermissionDeniedError
from splitlearn_comm.addresses import stays_here
from splitlearn_comm.server.security.caller import CALLER
from splitlearn_manager.config import ServerConfig


class OperatorDoor:
    """Lets operators in: by name where clients have to say who they are, else whoever is on this machine.

    Args:
        config: of the server.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._is_by_name = config.is_by_name
        self._operators = frozenset(config.operators)

    def check(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raise `PermissionDeniedError` (of splitlearn_comm) unless the call that is being served is an operator's."""
        refusal = self.refusal(context)
        if refusal is not None:
            raise PermissionDeniedError(refusal)

    def refusal(self, context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
        """Return why the client of the call that is being served may not operate the server; None if it may."""
        caller = CALLER.get().account.name
        return refusal_of(caller, context.peer(), self._operators if self._is_by_name else None)


def refusal_of(caller: str, peer: str, operators: Collection[str] | None) -> str | None:
    """Return why a client may not operate the server, None if it may. Pure.

    Args:
        caller: name of its token or certificate, else its address.
        peer: where it comes from, as gRPC writes it.
        operators: names of those who may; None where clients do not say who they are.
    """
    if operators is not None:
        if caller in operators:
            return None
        return f"{caller!r} is no operator of this server: ask whoever runs it to add the name to its operators"
    if stays_here(unquote(peer)):
        return None
    return (
        f"this server is operated from its own machine alone, and the call came from {unquote(peer)}: give it tokens "
        f"and operators to operate it from elsewhere"
    )
