"""`codec="auto"`: which codec moves a tensor fastest over this link, and the sentence that says why.

Pure: measurements in, a decision out. A byte of the tensor costs 1 / encode speed + ratio / bandwidth + 1 / decode
speed; the codec with the least wins. A lossy one is taken only if the user said what loss he accepts and it loses no
more; what it loses is asked for when its turn comes, fastest first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from splitlearn_comm.codec.raw import TensorCodec

# A codec that gains less than this is not worth its trouble: measurements differ by as much.
_LEAST_GAIN = 0.05

LossOf = Mapping[str, float] | Callable[[str], float | None]
"""What each lossy codec loses: the KL divergence of the logits, in nats a token, by its name."""


@dataclass(frozen=True, kw_only=True)
class CodecCost:
    """What one codec takes on one kind of tensor."""

    codec: str
    """Name of the codec."""
    is_lossless: bool
    """Whether every bit comes back."""
    payload_ratio: float
    """Bytes that travel over bytes of the elements."""
    encode_bytes_per_s: float
    """Bytes of elements encoded in a second."""
    decode_bytes_per_s: float
    """Bytes of elements decoded in a second."""

    def seconds_per_byte(self, bandwidth_bytes_per_s: float) -> float:
        """Time from tensor to tensor over such a link, for each byte of the elements."""
        link = self.payload_ratio / bandwidth_bytes_per_s
        return 1 / self.encode_bytes_per_s + link + 1 / self.decode_bytes_per_s


@dataclass(frozen=True, kw_only=True)
class CodecChoice:
    """The codec that was picked; printed as the sentence why."""

    codec: str
    """Its name."""
    reason: str
    """What was compared, in one sentence."""

    def __str__(self) -> str:
        return self.reason


def choose_codec(
    costs: Iterable[CodecCost],
    *,
    bandwidth_bytes_per_s: float,
    max_kl: float | None = None,
    kl: LossOf | None = None,
) -> CodecChoice:
    """The codec that is fastest over a link.

    Args:
        costs: One for each codec to choose from; raw must be among them.
        bandwidth_bytes_per_s: Of the link, measured.
        max_kl: The KL divergence of the logits that is accepted, in nats a token; None: lossless codecs only.
        kl: The KL divergence of each lossy codec, measured: by name, or a function of the name, asked only about those
            that would be the fastest. A codec without one (or None) does not take part.

    Raises:
        ValueError: Raw is missing, the bandwidth is not above 0, or `max_kl` came without `kl`.
    """
    by_name = {cost.codec: cost for cost in costs}
    if "raw" not in by_name or not bandwidth_bytes_per_s > 0:
        raise ValueError(
            f"expected the cost of raw and a bandwidth above 0, came {sorted(by_name)} and {bandwidth_bytes_per_s}"
        )
    if max_kl is not None and kl is None and not all(cost.is_lossless for cost in by_name.values()):
        raise ValueError("max_kl= says what loss is accepted; kl= must say what each codec loses: measure it")
    times = {
        name: cost.seconds_per_byte(bandwidth_bytes_per_s)
        for name, cost in by_name.items()
        if cost.is_lossless or max_kl is not None
    }
    losses: dict[str, float | None] = {}

    def is_accepted(name: str) -> bool:
        if by_name[name].is_lossless:
            return True
        losses[name] = loss = _loss_of(name, kl)
        # Not `loss > max_kl`, which a NaN would pass.
        return loss is not None and max_kl is not None and loss <= max_kl

    ranking = sorted(times, key=times.__getitem__)
    worth_it = (name for name in ranking if times[name] < (1 - _LEAST_GAIN) * times["raw"])
    picked = next(filter(is_accepted, worth_it), "raw")
    return CodecChoice(codec=picked, reason=_reason(picked, times, losses, bandwidth_bytes_per_s, max_kl))


def measure_cost(codec: TensorCodec, tensor: torch.Tensor, *, repeats: int = 3) -> CodecCost:
    """Take the time of a codec on a tensor (the best of some repeats) and its ratio. Takes part in no decision."""
    encode_s = decode_s = float("inf")
    payload = codec.pack(tensor)
    for _ in range(repeats):
        started = time.perf_counter()
        payload = codec.pack(tensor)
        bytes(payload.data)  # a raw payload is only a view; what is sent is copied once
        encoded = time.perf_counter()
        codec.unpack(payload)
        encode_s, decode_s = min(encode_s, encoded - started), min(decode_s, time.perf_counter() - encoded)
    return CodecCost(
        codec=codec.name,
        is_lossless=codec.is_lossless,
        payload_ratio=payload.num_bytes / payload.tensor_bytes,
        encode_bytes_per_s=payload.tensor_bytes / encode_s,
        decode_bytes_per_s=payload.tensor_bytes / decode_s,
    )


def _loss_of(name: str, kl: LossOf | None) -> float | None:
    if kl is None:
        return None
    return kl(name) if callable(kl) else kl.get(name)


def _reason(
    picked: str,
    times: Mapping[str, float],
    losses: Mapping[str, float | None],
    bandwidth_bytes_per_s: float,
    max_kl: float | None,
) -> str:
    def told(name: str) -> str:
        return f"{name} {1e9 * times[name]:.2f} ms{_loss_told(losses, name) if name != picked else ''}"

    ranking = ", ".join(told(name) for name in sorted(times, key=times.__getitem__))
    among = "lossless codecs" if max_kl is None else f"codecs with a KL of at most {max_kl:g} nats a token"
    is_known = math.isfinite(bandwidth_bytes_per_s)
    link = f"{bandwidth_bytes_per_s / 1e6:.4g} MB/s" if is_known else "a link too fast to measure"
    return (
        f"{picked}{_loss_told(losses, picked)}: over {link}, a megabyte of tensor "
        f"takes {ranking}; taken are {among}, and raw stays unless {_LEAST_GAIN:.0%} are gained"
    )


def _loss_told(losses: Mapping[str, float | None], name: str) -> str:
    """The loss of a codec in brackets, nothing where it was not asked for."""
    if name not in losses:
        return ""
    loss = losses[name]
    return " (KL unknown)" if loss is None else f" (KL {loss:.2g})"
