"""Limits of a server, and who may call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from splitlearn_comm.checks import check_kind, check_number, check_tokens
from splitlearn_comm.protocol import (
    KEEPALIVE_TIME_MS,
    KEEPALIVE_TIMEOUT_MS,
    MAX_MESSAGE_BYTES,
    SHORTEST_PING_INTERVAL_MS,
)
from splitlearn_comm.server.security.limits import ClientLimits
from splitlearn_comm.server.security.tls import ServerTLS
from splitlearn_comm.server.security.tokens import TokenBook, TokenFile, Tokens


@dataclass(frozen=True, kw_only=True)
class GRPCServerConfig:
    """Limits of a `GRPCComputeServer`, and who may call it. All numbers are greater than zero."""

    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Largest message taken or sent."""
    max_sessions: int = 256
    """Sessions open at once; each keeps its last reply in memory."""
    idle_session_timeout_s: float = 600.0
    """A session without a step for so long is closed."""
    detached_session_timeout_s: float = 30.0
    """A session whose connection broke is closed when its client does not come back for so long."""
    drain_timeout_s: float = 10.0
    """How long calls and steps that are running when the server stops may still take."""
    drain_idle_timeout_s: float = 2.0
    """How long a server that stops waits for clients to go elsewhere: one that does nothing, to come for its session,
    and those whose stateless calls still come."""
    refuse_nonfinite: bool = True
    """Whether NaN and infinity are refused in floating inputs."""
    tls: ServerTLS | None = None
    """Certificate and key, and for mTLS the authority of clients' certificates; None for connections in the clear."""
    tokens: Tokens | None = field(default=None, repr=False)
    """Who may call, by the token each client sends: a `TokenFile`, or names with their tokens; None for anybody.
    `grpc.health.v1` is answered without one."""
    client_limits: ClientLimits = field(default_factory=ClientLimits)
    """What one client may have at most."""
    allow_insecure: bool = False
    """Listen where other machines can connect, without TLS or without knowing who calls."""
    open_reflection: bool = False
    """Answer reflection without a token, where there are tokens."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if isinstance(item.default, int | float) and not isinstance(item.default, bool):
                check_number(item.name, getattr(self, item.name))
        if self.tls is not None:
            check_kind(self.tls, (ServerTLS,), "ServerTLS(certificate=..., key=...)", "tls")
        if self.tokens is not None:
            check_tokens(self.tokens, (TokenFile, Mapping))

    @property
    def is_closed_to_strangers(self) -> bool:
        """Whether nobody can listen in, and everybody has to prove who it is."""
        return self.tls is not None and (self.tokens is not None or self.tls.client_ca is not None)

    def check_files(self) -> None:
        """Find out now, and not when the server starts, whether certificate, key and tokens are of use.

        Raises:
            OSError: A file cannot be read.
            ValueError: What is in it makes no sense.
        """
        if self.tls is not None:
            self.tls.credentials()
        if self.tokens is not None:
            TokenBook(self.tokens)

    def channel_options(self) -> list[tuple[str, int]]:
        """The options of the gRPC server."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            # With it on, a second server on a port in use gets half of the sessions instead of an error.
            ("grpc.so_reuseport", 0),
            # Clients ping a silent connection; by default a server takes that for abuse and hangs up.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", SHORTEST_PING_INTERVAL_MS),
            # And the server itself notices a client whose machine is gone.
            ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ]
