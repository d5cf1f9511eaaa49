"""What both clients are told, and the channel that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypedDict, TypeVar

import splitlearn_comm.protocol as protocol
from splitlearn_comm.checks import check_kind, check_number, check_options
from splitlearn_comm.client.credentials import ClientTLS, Credentials
from splitlearn_comm.client.retry import ExponentialBackoff, RetryStrategy
from splitlearn_comm.client.timeouts import Timeouts
from splitlearn_comm.codec import AutoCodec, CodecPlan
from splitlearn_comm.directory import Wanted
from splitlearn_comm.errors import MessageTooLargeError
from splitlearn_comm.framing.chunks import Outgoing
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import RAW_CODECS, Codecs, RoleCodecs, ServiceInfo
from splitlearn_comm.observer import Observer
from splitlearn_comm.protocol import MODEL_METADATA, VERSION_METADATA
from splitlearn_comm.training import BackwardPass, ForwardPass, TrainingAction

# gRPC counts milliseconds of 32 bits.
_LONGEST_SILENCE_S = 1e6


class ClientOptions(TypedDict, total=False):
    """What a client may be given beside its address; the meaning and the default of each is in `ClientSettings`."""

    timeout_s: float
    connect_timeout_s: float
    timeouts: Timeouts
    retry: RetryStrategy
    max_message_bytes: int
    codec: str | Codecs | AutoCodec | CodecPlan
    max_kl: float | None
    timings: bool
    tls: ClientTLS | bool
    token: str | None
    insecure: bool
    replay_bytes: int
    dead_after_s: float
    model: str | None
    model_version: str | None
    observer: Observer | None
    interceptors: Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Address, limits and patience of a client."""

    addresses: tuple[str, ...]
    """`host:port` of the server, or of several that serve the same, the preferred one first."""
    timeout_s: float = 300.0
    """How long one call or step may take, retries included."""
    connect_timeout_s: float = 20.0
    """How long opening a session, or asking for health or information, may take."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    """How long, for each kind of call by itself; what it leaves out is as the two above say."""
    retry: RetryStrategy = field(default_factory=ExponentialBackoff)
    """When to try again if the server cannot be reached."""
    max_message_bytes: int = protocol.MAX_MESSAGE_BYTES
    """Largest message sent or taken."""
    codec: str | Codecs | AutoCodec | CodecPlan = RAW_CODECS
    """How the hidden states of sessions are coded: a name for both directions, `Codecs`, or `"auto"` for the lossless
    one that is fastest over the link; a `CodecPlan` says it for gradients and caches too. A lossy one is your choice
    (`splitlearn_comm.codec.measure_loss` shows what it loses). Of what `compute` carries only caches are coded."""
    max_kl: float | None = None
    """With `"auto"`: take a lossy one too, if the KL divergence that it costs is at most this, in nats a token; what
    each costs has to be given, with `AutoCodec(kl=...)`."""
    timings: bool = False
    """Whether sessions note where the time of each step went (`session.breakdown`)."""
    replay_bytes: int = 64 * 1024 * 1024
    """Memory of each session for what it has sent, so that it can be rebuilt at another server, or at this one after a
    restart; a session that has sent more cannot be rebuilt. 0 keeps nothing."""
    dead_after_s: float = 30.0
    """A server whose machine is silent for so long is given up, in the middle of a step too. (One whose process ends
    is noticed at once.) Servers of this package take at least 2 s."""

    model: str | None = None
    """Name of the model to use, where the address serves several; None for the only one."""
    model_version: str | None = None
    """Version of that model; None for the newest."""

    tls: ClientTLS | bool = False
    """`ClientTLS`, or True for servers with certificates of a public authority; False for connections in the clear."""
    token: str | None = field(default=None, repr=False)
    """Who this client is: the token a server knows it by, sent with each call; None to send none."""
    insecure: bool = False
    """Send the token without TLS to other machines too."""
    observer: Observer | None = None
    """Is told of calls, sessions and their steps; see `splitlearn_comm.observer`."""
    interceptors: Sequence[Any] = ()
    """gRPC's own, the first of them first: those of `grpc` for a synchronous client, of `grpc.aio` for an asyncio
    one."""

    def __post_init__(self) -> None:
        for name in ("timeout_s", "connect_timeout_s", "max_message_bytes", "dead_after_s"):
            check_number(name, getattr(self, name))
        check_kind(self.timeouts, (Timeouts,), "Timeouts(...)", "timeouts")
        check_kind(self.retry, (RetryStrategy,), "a RetryStrategy, such as ExponentialBackoff()", "retry")
        check_kind(
            self.codec,
            (str, Codecs, AutoCodec, CodecPlan),
            "the name of a codec, Codecs, AutoCodec or CodecPlan",
            "codec",
        )
        check_kind(self.tls, (ClientTLS, bool), "True, or ClientTLS(ca=...)", "tls")
        if (auto := self.auto) is not None:
            auto.check()
        elif self.max_kl is not None:
            raise ValueError(f"max_kl={self.max_kl:g} goes with codec='auto', came codec={self.codec!r}")
        for name in ("model", "model_version"):
            if not (getattr(self, name) or "").isascii():
                raise ValueError(f"{name} has to be ASCII, came {getattr(self, name)!r}; ask the server for its names")
        for address in self.addresses:
            self.credentials.check(address)

    @cached_property
    def compute_timeout_s(self) -> float:
        """How long a stateless call may take."""
        return self.timeout_s if self.timeouts.compute_s is None else self.timeouts.compute_s

    @cached_property
    def step_timeout_s(self) -> float:
        """How long a step may take."""
        return self.timeout_s if self.timeouts.step_s is None else self.timeouts.step_s

    def training_timeout_s(self, action: TrainingAction) -> float:
        """How long a step of training may take."""
        match action:
            case ForwardPass():
                own_s = self.timeouts.forward_s
            case BackwardPass():
                own_s = self.timeouts.backward_s
            case _:
                own_s = self.timeouts.update_s
        return self.timeout_s if own_s is None else own_s

    @cached_property
    def control_timeout_s(self) -> float:
        """How long asking for health or information may take."""
        return self.connect_timeout_s if self.timeouts.control_s is None else self.timeouts.control_s

    @cached_property
    def open_timeout_s(self) -> float:
        """How long opening a session may take."""
        return self.connect_timeout_s if self.timeouts.connect_s is None else self.timeouts.connect_s

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with one call: a name for it in the server's log, the token, and the model it is for."""
        named = {MODEL_METADATA: self.model, VERSION_METADATA: self.model_version}
        return self.credentials.metadata() + tuple((key, value) for key, value in named.items() if value)

    @cached_property
    def service(self) -> str:
        """The model that is wanted, in one word or three; empty where that is left open."""
        return str(Wanted(name=self.model or "", version=self.model_version or ""))

    @property
    def address(self) -> str:
        """The addresses, for people."""
        return ", ".join(self.addresses)

    @property
    def credentials(self) -> Credentials:
        """What the client proves itself with, and asks of servers."""
        return Credentials(tls=self.tls, token=self.token, insecure=self.insecure)

    @cached_property
    def plan(self) -> CodecPlan:
        """The codecs as they were asked for, for each role."""
        return self.codec if isinstance(self.codec, CodecPlan) else CodecPlan(hidden=self.codec)

    @property
    def auto(self) -> AutoCodec | None:
        """How the codec of hidden states is to be chosen; None if it is named."""
        auto = self.plan.auto
        return auto if auto is None or self.max_kl is None else replace(auto, max_kl=self.max_kl)

    def inbox(self, codecs: RoleCodecs) -> Inbox:
        """Reads what comes over one stream for which these codecs are agreed on."""
        inbox = Inbox(self.max_message_bytes)
        inbox.agree(codecs)
        return inbox

    def limit_bytes(self, info: ServiceInfo | None) -> int:
        """Largest message to send: the smaller limit of both sides, as far as the server's is known."""
        theirs = info.max_message_bytes if info else None
        return min(self.max_message_bytes, theirs or self.max_message_bytes)

    def channel_options(self) -> list[tuple[str, int]]:
        """The options of the gRPC channel."""
        dead_after_ms = min(self.dead_after_s, _LONGEST_SILENCE_S) * 1000
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", int(dead_after_ms * 2 / 3)),
            ("grpc.keepalive_timeout_ms", int(dead_after_ms / 3)),
            # The answer to a ping has a limit of its own, a minute by default, and the keepalive waits for that.
            ("grpc.http2.ping_timeout_ms", int(dead_after_ms / 3)),
            ("grpc.http2.max_pings_without_data", 0),
            # Our own retries decide when to try again; the default second would make them fail without trying.
            ("grpc.initial_reconnect_backoff_ms", 100),
            # Despite its name: how long a connection may take to come about; a process that hangs never greets back.
            ("grpc.min_reconnect_backoff_ms", int(dead_after_ms / 3)),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # Clients of one process must not inherit each other's broken connections.
            ("grpc.use_local_subchannel_pool", 1),
            # What is retried, and when, is decided here. gRPC's own, which begins a call that met the end of its
            # connection again, can moreover forget to end a read: its stream then hangs past every deadline and
            # cannot be cancelled (seen with 1.85, a server that stops and a busy machine).
            ("grpc.enable_retries", 0),
        ]


def settings_of(addresses: tuple[str, ...], options: ClientOptions) -> ClientSettings:
    """The settings of a client. Raises `TypeError` for an option that there is not, and says which there are."""
    check_options(options, ClientOptions.__annotations__)
    return ClientSettings(addresses=addresses, **options)


MessageT = TypeVar("MessageT", bound=Outgoing)


def check_size(data: MessageT, limit_bytes: int) -> MessageT:
    """The message, if it may be sent. Raises `MessageTooLargeError` otherwise."""
    if len(data) > limit_bytes:
        raise MessageTooLargeError(
            f"the message has {len(data)} bytes and the limit is {limit_bytes}; nothing was sent: send a smaller "
            f"batch, or a long sequence in several steps of a session, or raise max_message_bytes at the client and at "
            f"the server"
        )
    return data
