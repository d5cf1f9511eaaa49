"""`codec="auto"`: what the choice of a codec is made from, but for the bandwidth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from splitlearn_comm.codec.choice import CodecCost, LossOf, measure_cost
from splitlearn_comm.codec.registry import RAW, codec_named, usable_names
from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.protocol import MAX_MESSAGE_BYTES

_SAMPLE_TOKENS = 128
# More elements say nothing more about a codec, and a server says how many there are.
_SAMPLE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class AutoCodec:
    """Choose the codec that is fastest over the link to a server: the same for both directions, among lossless ones.

    Lossy ones take part only with both `max_kl` and `kl`: what is accepted, and what each of them loses. This package
    knows no model, so it cannot measure that; `splitlearn` does (`connection={"codec": "auto", "max_kl": 1e-3}`).
    """

    max_kl: float | None = None
    """The loss that is accepted, as KL divergence of the logits with hidden states coded in both directions, in nats
    a token; None: nothing lossy."""
    kl: LossOf | None = field(default=None, compare=False)
    """That of each lossy codec, measured: by name, or a function of the name. One without (or None) takes no part."""
    sample: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """A tensor like those that will be sent; None: normal numbers [1, 128, H], H and the dtype as the server says."""

    def __post_init__(self) -> None:
        if self.max_kl is not None and not self.max_kl >= 0:
            raise ValueError(f"max_kl is in nats a token: expected 0 or more, came {self.max_kl}")
        if self.sample is not None and not self.sample.numel():
            raise ValueError("sample is a tensor like those that will be sent: expected one with elements, came none")

    def check(self) -> None:
        """Raise `ValueError` if a loss is accepted and nothing says what each codec loses."""
        if self.max_kl is not None and self.kl is None:
            raise ValueError(
                f"max_kl={self.max_kl:g} says what loss is accepted, and nothing says what each codec loses: this "
                f"package knows no model. Give what you measured, codec=AutoCodec(max_kl={self.max_kl:g}, "
                f"kl={{'int8': ...}}), or load the model with splitlearn, which measures it"
            )

    def sample_for(
        self, hidden_size: int | None, dtype: torch.dtype | None, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> torch.Tensor:
        """The tensor to measure codecs on.

        Args:
            hidden_size: H, as the server says; None if it takes any tensor.
            dtype: Of the hidden states, as the server says; None for any.
            max_bytes: Largest message sent.

        Raises:
            InvalidRequestError: No token of that size can be sent.
            ValueError: There is no sample, and the server does not say what it takes.
        """
        if self.sample is not None:
            return self.sample
        if hidden_size is None:
            raise ValueError(
                "codec='auto' measures codecs on a tensor like those that will be sent, and this server takes any: "
                "give one, codec=AutoCodec(sample=tensor), or name the codec"
            )
        # Exponents of normal numbers are spread as those of hidden states are: zstd gains about as much.
        generator = torch.Generator().manual_seed(0)
        token_bytes = hidden_size * 4
        if not 0 < token_bytes <= max_bytes:
            raise InvalidRequestError(
                f"the server says that its hidden states have {hidden_size} elements: expected some, and "
                f"no more than fit into max_message_bytes={max_bytes}; is it a server of this kind?"
            )
        num_tokens = max(1, min(_SAMPLE_TOKENS, _SAMPLE_BYTES // token_bytes))
        return torch.randn(1, num_tokens, hidden_size, generator=generator).to(dtype or torch.float32)

    def costs(self, sample: torch.Tensor, known: Collection[str]) -> list[CodecCost]:
        """What raw and each codec that may be chosen takes on a tensor, measured.

        Args:
            sample: Like those that will be sent.
            known: Names of the codecs that the server has, beside raw.
        """
        codecs = [codec_named(name) for name in usable_names("hidden") if name in (RAW.name, *known)]
        return [measure_cost(codec, sample) for codec in codecs if codec.is_lossless or self.max_kl is not None]
