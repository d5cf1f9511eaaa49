"""What a codec costs a tensor: bytes kept, and how far the numbers move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from splitlearn_comm.codec.payload import Payload
from splitlearn_comm.codec.raw import TensorCodec


@dataclass(frozen=True, kw_only=True)
class CodecLoss:
    """One codec on one tensor; printed as a line."""

    codec: str
    """Name of the codec."""
    used: bool
    """Whether the tensor went through it; False: the codec left it raw."""
    payload_ratio: float
    """Bytes that travel over bytes of the elements."""
    relative_rms: float
    """Root mean square of the differences over that of the tensor; 0 if nothing changed."""
    max_abs: float
    """Largest difference of an element."""

    def __str__(self) -> str:
        left = "" if self.used else " (left raw)"
        return (
            f"{self.codec}{left}: {self.payload_ratio:.4f} of the bytes, "
            f"relative RMS error {self.relative_rms:.2e}, largest error {self.max_abs:.2e}"
        )


def measure_loss(codec: TensorCodec, tensor: torch.Tensor) -> CodecLoss:
    """Send a tensor through a codec and back, without a wire, and compare.

    Args:
        codec: Any codec.
        tensor: Of any shape and dtype, finite, with at least one element.

    Raises:
        InvalidRequestError: For a tensor that cannot be sent.
    """
    payload = codec.pack(tensor)
    came = codec.unpack(Payload.of(payload.message()))
    difference, original = _wide(came) - _wide(tensor), _wide(tensor)
    moved, size = difference.norm().item(), original.norm().item()
    return CodecLoss(
        codec=codec.name,
        used=payload.codec == codec.name or codec.name == "raw",
        payload_ratio=payload.num_bytes / payload.tensor_bytes,
        relative_rms=moved / size if size else (math.inf if moved else 0.0),
        max_abs=difference.abs().max().item(),
    )


def kl_nats(logits_NTV: torch.Tensor, reference_NTV: torch.Tensor) -> float:
    """The mean over all tokens of KL(reference || ours) of the next token's distribution, in nats.

    Args:
        logits_NTV: [..., V], floating: what came of coded hidden states.
        reference_NTV: The same without a codec.
    """
    # Differences of 1e-7 drown in float32.
    ours, reference = logits_NTV.double().log_softmax(-1), reference_NTV.double().log_softmax(-1)
    return (reference.exp() * (reference - ours)).sum(-1).mean().item()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()
