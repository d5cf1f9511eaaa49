"""What can be set on a server."""

from dataclasses import dataclass, field, fields

from splitlearn_comm.server import ClientLimits, ServerTLS
from splitlearn_comm.server.security import Tokens


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a `ManagedServer`, checked once.

    Raises:
        ValueError: a value of the wrong kind, or a number that is not positive.
        TypeError: an unknown key.
    """

    max_sessions: int = 64
    """Sessions open at once; one more is refused with RESOURCE_EXHAUSTED."""
    idle_session_timeout_s: float = 600.0
    """A session without a step for so long is freed."""
    detached_session_timeout_s: float = 30.0
    """A session whose client's stream broke is freed after so long, so that the client may come back to it."""
    max_message_bytes: int = 256 * 1024 * 1024
    """Largest message taken or sent; 256 MiB hold 10,000 positions of width 4,096 in float32 and some more."""
    drain_timeout_s: float = 10.0
    """How long steps in flight may go on after SIGINT or SIGTERM."""
    drain_idle_timeout_s: float = 2.0
    """How long a server that stops waits for a client that does nothing to take its session elsewhere."""
    max_cached_tokens: int | None = None
    """Tokens that the caches of all sessions of the model in this process may hold together, rows times length; None
    for no limit. A step more is refused with RESOURCE_EXHAUSTED. (A model in another process has its `kv_bytes`.)"""
    max_cache_bytes: int | None = None
    """The same in bytes of keys, values and states; None for no limit."""
    max_rows_per_forward: int = 64
    """Rows of one forward that several sessions share; 1 runs their steps one by one."""
    max_tokens_per_forward: int = 512
    """Tokens of one forward, rows times length; a longer prompt runs in chunks."""
    max_trainings: int = 8
    """Clients that train a model at once, each an adapter of its own over the same weights. Counts, as what is said of
    trainings below, for each model that says nothing else (`ModelSpec`)."""
    allow_full_training: bool = False
    """Let clients train all weights of a trunk, each of a private copy of it."""
    pass_timeout_s: float = 300.0
    """A training forward whose backward has not come for so long is forgotten; its client runs it again if need be."""
    max_training_bytes: int | None = None
    """What clients that train the model in this process may keep there together, in bytes; None for no limit. More is
    refused with RESOURCE_EXHAUSTED. (A model in another process has its `training_bytes`.)"""
    refuse_nonfinite: bool = True
    """Refuse hidden states that hold NaN or Inf."""
    tls: ServerTLS | None = None
    """Certificate and key, and for mTLS the authority of clients' certificates; None for connections in the clear."""
    tokens: Tokens | None = field(default=None, repr=False)
    """Who may call: a `TokenFile`, or names with their tokens; None for anybody."""
    operators: tuple[str, ...] = ()
    """Who may load and unload models and drain the server: names of tokens, and `certificate:NAME` for clients'
    certificates. Where neither is asked for, everybody on this machine may, and nobody else."""
    client_limits: ClientLimits = field(default_factory=ClientLimits)
    """What one client may have at most."""
    allow_insecure: bool = False
    """Listen where other machines can connect, without TLS or without knowing who calls."""
    open_reflection: bool = False
    """Answer reflection without a token, where there are tokens."""
    metrics_port: int | None = None
    """Where Prometheus finds `/metrics`, and others `/healthz` and `/readyz`; 0 for any port that is free, None for no
    metrics."""
    metrics_host: str = "127.0.0.1"
    """Address of these pages; the default is reachable from this machine alone."""
    open_metrics: bool = False
    """Give these pages to other machines, to everybody who can connect."""

    def __post_init__(self) -> None:
        port = self.metrics_port
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535):
            raise ValueError(f"metrics_port must be a port from 0 to 65535, or None; got {port!r}")
        for name in ("max_cached_tokens", "max_cache_bytes", "max_training_bytes"):
            limit = getattr(self, name)
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
                raise ValueError(f"{name} must be a whole number greater than zero, or None; got {limit!r}")
        self._check_operators()
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, bool):
                if not isinstance(value, bool):
                    raise ValueError(f"{item.name} must be True or False; got {value!r}")
            elif isinstance(item.default, int | float) and (
                isinstance(value, bool) or not isinstance(value, int | float) or not value > 0
            ):
                raise ValueError(f"{item.name} must be a number greater than zero; got {value!r}")

    @property
    def is_by_name(self) -> bool:
        """Whether clients have to say who they are."""
        return self.tokens is not None or (self.tls is not None and self.tls.client_ca is not None)

    def _check_operators(self) -> None:
        names = self.operators
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"operators must be a tuple of names; got {names!r}")
        if names and not self.is_by_name:
            raise ValueError(
                "operators are known by their tokens or certificates, and this server asks for neither: give tokens= "
                "or tls=ServerTLS(client_ca=...), or leave operators out for whoever is on this machine"
            )
