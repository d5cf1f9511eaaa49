"""Who a client is: the name of its token, else its certificate's, else where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio

from splitlearn_comm.errors import AuthenticationError
from splitlearn_comm.protocol import AUTHORIZATION_METADATA, BEARER
from splitlearn_comm.server.security.tokens import Acquaintance, TokenBook

REFUSAL = (
    "no valid token came with this call: give the client the token this server knows it by (token=...), or ask whoever "
    "runs the server for one"
)
"""The same for a missing, a malformed and a wrong one."""
REVOKED = (
    "the token of this client was taken out while its session was open: give the client another (token=...), or ask "
    "whoever runs the server for one"
)


class Identity:
    """Tells who a client is.

    Args:
        tokens: The tokens; None if none are asked for.
        has_client_certificates: Whether clients prove themselves by certificates.
    """

    def __init__(self, tokens: TokenBook | None, has_client_certificates: bool) -> None:
        self._tokens = tokens
        self._has_client_certificates = has_client_certificates

    def of(
        self, context: grpc.aio.ServicerContext[Any, Any], metadata: Mapping[str, str | bytes], is_open: bool
    ) -> tuple[str, bool]:
        """The client's name, and whether that is only its address.

        Args:
            context: Of its call.
            metadata: That came with the call.
            is_open: Whether the call needs no token.

        Raises:
            AuthenticationError: The call needs a token and has no valid one.
        """
        if self._tokens is not None and not is_open:
            name = self._tokens.name_of(_token_in(metadata.get(AUTHORIZATION_METADATA)))
            if name is None:
                raise AuthenticationError(REFUSAL)
            return name, False
        if self._has_client_certificates:
            names = tuple(context.auth_context().get("x509_common_name", ()))
            if names:
                return f"certificate:{names[0].decode(errors='replace')}", False
        return self.address_of(context)

    def acquaintance(self, metadata: Mapping[str, str | bytes]) -> Acquaintance | None:
        """Tells later whether the call's token is known still; None where none is asked for."""
        return (
            None if self._tokens is None else self._tokens.acquaintance(_token_in(metadata.get(AUTHORIZATION_METADATA)))
        )

    @staticmethod
    def address_of(context: grpc.aio.ServicerContext[Any, Any]) -> tuple[str, bool]:
        """Where a call comes from, as `of` says it."""
        return without_port(context.peer()), True


def without_port(peer: str) -> str:
    """A peer as gRPC names it (`ipv4:10.0.0.1:50000`, `unix:`), less its port: a client has many."""
    return peer if peer.startswith("unix") else peer.rpartition(":")[0]


def _token_in(authorization: str | bytes | None) -> str:
    # A scheme's name is case-insensitive (RFC 7235).
    scheme, _, token = authorization.partition(" ") if isinstance(authorization, str) else ("", "", "")
    return token.strip() if scheme.lower() == BEARER.lower() else ""
