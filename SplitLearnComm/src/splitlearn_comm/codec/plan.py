"""What a user says about codecs: one for each role, and for hidden states also "the one that is fastest"."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from splitlearn_comm.codec.auto import AutoCodec
from splitlearn_comm.codec.registry import RAW, codec_for
from splitlearn_comm.messages import RAW_CODECS, Codecs, RoleCodecs

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class CodecPlan:
    """How the tensors of each role are coded: a name for both directions, or `Codecs`. A lossy one is your choice
    (`measure_loss` shows what it loses).

    Raises:
        ValueError: A codec is unknown, or not for that role.
        ImportError: It needs an extra that is not installed.
    """

    hidden: str | Codecs | AutoCodec = RAW_CODECS
    """Hidden states; `"auto"`, or `AutoCodec`, for the one that is fastest over the link."""
    gradient: str | Codecs = RAW_CODECS
    """Gradients."""
    kv: str | Codecs = RAW_CODECS
    """Caches, with calls and when a session moves: lossless ones and casts. Raw, a session that moves goes on with the
    same bits."""

    def __post_init__(self) -> None:
        for role, codecs in self.agreed.by_role():
            for name in codecs.names():
                codec_for(role, name)

    @property
    def auto(self) -> AutoCodec | None:
        """How the codec of hidden states is to be chosen; None if it is named."""
        if isinstance(self.hidden, AutoCodec):
            return self.hidden
        return AutoCodec() if self.hidden == AUTO else None

    @cached_property
    def agreed(self) -> RoleCodecs:
        """What to agree on with a server; hidden states are raw in it if their codec is still to be chosen."""
        hidden = RAW_CODECS if self.auto else _both(self.hidden)
        return RoleCodecs(hidden=hidden, gradient=_both(self.gradient), kv=_both(self.kv))

    def with_hidden(self, name: str) -> RoleCodecs:
        """What to agree on once that is chosen."""
        return replace(self.agreed, hidden=_both(name))


def _both(codec: str | Codecs | AutoCodec) -> Codecs:
    assert not isinstance(codec, AutoCodec), "hidden states alone have one, and theirs is chosen first"
    if isinstance(codec, Codecs):
        return codec
    name = "" if codec == RAW.name else codec
    return Codecs(name, name)
