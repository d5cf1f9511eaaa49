"""What both clients are told, and the channel that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import splitlearn_comm.protocol as protocol
from splitlearn_comm.client.retry import ExponentialBackoff, RetryStrategy
from splitlearn_comm.errors import MessageTooLargeError
from splitlearn_comm.messages import ServiceInfo


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Address, limits and patience of a client."""

    address: str
    """`host:port` of the server."""
    timeout_s: float = 300.0
    """How long one call or step may take, retries included."""
    connect_timeout_s: float = 20.0
    """How long opening a session, or asking for health or information, may take."""
    retry: RetryStrategy = field(default_factory=ExponentialBackoff)
    """When to try again if the server cannot be reached."""
    max_message_bytes: int = protocol.MAX_MESSAGE_BYTES
    """Largest message sent or taken."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "connect_timeout_s", "max_message_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than zero, came {getattr(self, name)}")

    @classmethod
    def of(
        cls,
        address: str,
        timeout_s: float,
        connect_timeout_s: float,
        retry: RetryStrategy | None,
        max_message_bytes: int,
    ) -> Self:
        """Settings with the default strategy where none is given."""
        return cls(
            address=address,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            retry=retry or ExponentialBackoff(),
            max_message_bytes=max_message_bytes,
        )

    def limit_bytes(self, info: ServiceInfo | None) -> int:
        """Largest message to send: the smaller limit of both sides, as far as the server's is known."""
        theirs = info.max_message_bytes if info else None
        return min(self.max_message_bytes, theirs or self.max_message_bytes)

    def channel_options(self) -> list[tuple[str, int]]:
        """The options of the gRPC channel."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", protocol.KEEPALIVE_TIME_MS),
            ("grpc.keepalive_timeout_ms", protocol.KEEPALIVE_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
            # Our own retries decide when to try again; the default second would make them fail without trying.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # Clients of one process must not inherit each other's broken connections.
            ("grpc.use_local_subchannel_pool", 1),
        ]


def check_size(data: bytes, limit_bytes: int) -> bytes:
    """The message, if it may be sent. Raises `MessageTooLargeError` otherwise."""
    if len(data) > limit_bytes:
        raise MessageTooLargeError(
            f"the message has {len(data)} bytes and the limit is {limit_bytes}; nothing was sent: send a smaller "
            f"batch, feed a long prompt in several steps, or raise max_message_bytes at the client and at the server"
        )
    return data
