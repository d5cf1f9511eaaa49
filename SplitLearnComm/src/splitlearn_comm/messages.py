"""What both sides of the wire speak of: actions of a step, calls, cache entries, what a service is.

Plain values around tensors; protobuf is not seen outside `codec` and `framing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, kw_only=True)
class ServiceInfo:
    """What a server serves. A client learns it from `get_info()`."""

    name: str
    """A name for people."""
    fingerprint: str | None = None
    """Digest of the model's configuration and checkpoint; equal on both ends of one model."""
    split_points: tuple[int, int] | None = None
    """Layers [a, b) of the unsplit model that run here."""
    num_layers: int | None = None
    """Layers of the unsplit model."""
    hidden_size: int | None = None
    """H of the hidden states [B, T, H] taken; None if this is no model part, and then any tensor is taken."""
    dtype: torch.dtype | None = None
    """The dtype hidden states must have; None for any."""
    max_positions: int | None = None
    """Tokens a sequence may have at most; None for no limit."""
    model_type: str | None = None
    """The architecture's name in Hugging Face configurations."""
    cache_kinds: tuple[str, ...] = ()
    """Kinds of cache the layers here have."""
    stateful: bool = False
    """Whether sessions keep state between steps."""
    version: str | None = None
    """Version of the serving software."""
    max_message_bytes: int | None = None
    """Largest message the server takes and sends; the server fills it in."""
    codecs: tuple[str, ...] = ()
    """Names of the codecs the server takes and sends, beside raw; the server fills it in."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Anything else the host wants to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What the caches of a host take."""

    num_bytes: int = 0
    """Bytes in use; 0 also where it is not known."""
    limit_bytes: int = 0
    """Bytes that they may take; 0 for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a server is, or one of the models on it."""

    steps: int = 0
    """Steps and stateless calls that run, or wait for their turn."""
    sessions: int = 0
    """Sessions open."""
    kv_bytes: int = 0
    """What their caches take; 0 also where it is not known."""
    kv_limit_bytes: int = 0
    """What these may take; 0 for no limit."""

    def __add__(self, other: Load) -> Load:
        """Both together; without a limit as soon as one has none."""
        limits = self.kv_limit_bytes, other.kv_limit_bytes
        return Load(
            steps=self.steps + other.steps,
            sessions=self.sessions + other.sessions,
            kv_bytes=self.kv_bytes + other.kv_bytes,
            kv_limit_bytes=sum(limits) if all(limits) else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """What a server says of itself to a client that chooses among several."""

    serving: bool
    """Whether it takes calls now, for the model that was asked for."""
    models: tuple[str, ...] = ()
    """Names of all that takes sessions and calls there; empty where the server does not say."""
    load: Load | None = None
    """How busy it is; None where it does not say."""


@dataclass(frozen=True)
class KVEntry:
    """The cache of one layer, opaque to whoever does not hold the layer."""

    layer: int
    """The layer's number in the unsplit model."""
    kind: str
    """What kind of cache it is, in the words of the host that made it."""
    tensors: Mapping[str, torch.Tensor]
    """Named tensors: `keys` and `values`, or `conv` and `recurrent`."""


@dataclass(frozen=True)
class KVEntries:
    """The cache of all layers of a part. Hand it back unchanged to go on from it."""

    entries: tuple[KVEntry, ...]
    """One for each layer that has a cache."""
    position: int
    """Tokens in the cache."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements of all its tensors."""
        return sum(tensor.nbytes for entry in self.entries for tensor in entry.tensors.values())


@dataclass(frozen=True)
class SessionState:
    """All that a session is, so that it can go on at another server."""

    cache: KVEntries
    """Its cache; the position is the session's."""
    batch: int | None
    """Rows of the last forward; None before the first."""


@dataclass(frozen=True)
class Forward:
    """Run hidden states through the layers and append them to the session's cache."""

    hidden: torch.Tensor
    """[B, T, H], floating."""
    attention_mask: torch.Tensor | None = None
    """[B, past + T], bool or integer; None for no padding."""
    position_ids: torch.Tensor | None = None
    """[B, T], integer; None to go on from the cache."""


@dataclass(frozen=True)
class Reorder:
    """Make row i of the cache what row indices[i] was; the batch size becomes len(indices)."""

    indices: Sequence[int]
    """Row numbers, each in [0, B)."""


@dataclass(frozen=True)
class Crop:
    """Forget the newest tokens."""

    num_tokens: int
    """Tokens to remove from the end; 0 only lets go of what was recorded for a crop."""


@dataclass(frozen=True)
class StartRecording:
    """Keep from here on what is needed to crop layers whose cache forgets by itself."""


Action = Forward | Reorder | Crop | StartRecording
"""What a step of a session does."""


@dataclass(frozen=True, slots=True)
class Codecs:
    """Names of the codecs of one kind of tensor, one for each direction; empty is raw."""

    to_server: str = ""
    """What the client sends."""
    to_client: str = ""
    """What the server sends."""

    def names(self) -> tuple[str, ...]:
        """Both, without raw."""
        return tuple(name for name in (self.to_server, self.to_client) if name)


RAW_CODECS = Codecs()
"""Nothing is coded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCodecs:
    """The codecs that two sides agree on, for each role a tensor can have."""

    hidden: Codecs = RAW_CODECS
    """Of hidden states."""
    gradient: Codecs = RAW_CODECS
    """Of gradients."""
    kv: Codecs = RAW_CODECS
    """Of caches that travel."""

    def by_role(self) -> tuple[tuple[str, Codecs], ...]:
        """Each role with its codecs."""
        return ("hidden", self.hidden), ("gradient", self.gradient), ("kv", self.kv)


RAW_ROLES = RoleCodecs()
"""Nothing is coded in any role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of a step went at the server, in seconds."""

    queue_s: float
    """From the arrival of the message until its turn in the host came: decoding, checks, others' steps."""
    compute_s: float
    """In the host, from when its turn came."""
    serialise_s: float
    """Making the answer's bytes."""


@dataclass(frozen=True)
class ComputeCall:
    """One stateless call."""

    tensor: torch.Tensor
    """The input; for a model part hidden states [B, T, H]."""
    attention_mask: torch.Tensor | None = None
    """[B, past + T], bool or integer; None for no padding."""
    position_ids: torch.Tensor | None = None
    """[B, T], integer; None to go on from the cache."""
    past_key_values: KVEntries | None = None
    """The cache of an earlier result; None if nothing came before."""
    use_cache: bool = False
    """Whether the result is to carry the cache."""
    adapter: str = ""
    """Name of an adapter of the client, with which to compute; empty for none."""
    client: str = ""
    """Whose call it is, as the server knows its clients; set by the server."""


@dataclass(frozen=True)
class ComputeResult:
    """The answer to one stateless call."""

    tensor: torch.Tensor
    """The output; for a model part hidden states [B, T, H]."""
    past_key_values: KVEntries | None = None
    """The cache after the call; given if and only if `use_cache` asked for it."""
