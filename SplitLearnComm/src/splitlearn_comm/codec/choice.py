"""`codec="auto"`: which codec moves a tensor fastest over this link, and the sentence that says why.

Pure: measurements in, a decision out. A byte of the tensor costs 1 / encode speed + ratio / bandwidth + 1 / decode
speed; the codec with the least wins. Lossy ones take part only if the user said what loss they accept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from splitlearn_comm.codec.raw import TensorCodec

# A codec that gains less than this is not worth its trouble: measurements differ by as much.
_LEAST_GAIN = 0.05


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
    kl: Mapping[str, float] | Callable[[str], float] | None = None,
) -> CodecChoice:
    """The codec that is fastest over a link.

    Args:
        costs: One for each codec to choose from; raw must be among them.
        bandwidth_bytes_per_s: Of the link, measured.
        max_kl: The KL divergence of the logits that is accepted, in nats a token; None: lossless codecs only.
        kl: The KL divergence of each lossy codec, measured: by name, or a function of the name. A codec without one
            does not take part.

    Raises:
        ValueError: Raw is missing, the bandwidth is not above 0, or `max_kl` came without `kl`.
    """
    by_name = {cost.codec: cost for cost in costs}
    if "raw" not in by_name or not bandwidth_bytes_per_s > 0:
        raise ValueError(
            f"expected the cost of raw and a bandwidth above 0, came {sorted(by_name)} and {bandwidth_bytes_per_s}"
        )
    losses = _accepted_losses(by_name.values(), max_kl, kl)
    times = {name: by_name[name].seconds_per_byte(bandwidth_bytes_per_s) for name in losses}
    fastest = min(times, key=times.__getitem__)
    picked = fastest if times[fastest] < (1 - _LEAST_GAIN) * times["raw"] else "raw"
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


def _accepted_losses(
    costs: Iterable[CodecCost], max_kl: float | None, kl: Mapping[str, float] | Callable[[str], float] | None
) -> dict[str, float]:
    """The KL divergence of each codec that may be chosen, 0 for lossless ones."""
    accepted = {}
    for cost in costs:
        if cost.is_lossless:
            accepted[cost.codec] = 0.0
        elif max_kl is not None:
            if kl is None:
                raise ValueError("max_kl= says what loss is accepted; kl= must say what each codec loses: measure it")
            loss = kl(cost.codec) if callable(kl) else kl.get(cost.codec)
            # Not `loss > max_kl`, which a NaN would pass.
            if loss is not None and loss <= max_kl:
                accepted[cost.codec] = loss
    return accepted


def _reason(
    picked: str,
    times: Mapping[str, float],
    losses: Mapping[str, float],
    bandwidth_bytes_per_s: float,
    max_kl: float | None,
) -> str:
    def per_megabyte(name: str) -> str:
        return f"{name} {1e9 * times[name]:.2f} ms"

    ranking = ", ".join(per_megabyte(name) for name in sorted(times, key=times.__getitem__))
    among = "lossless codecs" if max_kl is None else f"codecs with a KL of at most {max_kl:g} nats a token"
    loses = f" (KL {losses[picked]:.2g})" if losses[picked] else ""
    return (
        f"{picked}{loses}: over {bandwidth_bytes_per_s / 1e6:.4g} MB/s, a megabyte of tensor takes {ranking}; "
        f"compared were {among}, and raw stays unless {_LEAST_GAIN:.0%} are gained"
    )
