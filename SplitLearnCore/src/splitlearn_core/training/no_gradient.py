"""Where no gradient goes, that is said: silence would leave the Bottom without one.

Tensor shapes: B rows, T tokens, H hidden size.
"""

from typing import Any

import torch

from splitlearn_core.errors import UnsupportedOptionError

NO_GRADIENT = (
    "only a forward in train mode has a backward through a trunk on a server, or through one that trains, without a "
    "cache: call model.train() and leave use_cache out, or compute under torch.no_grad()"
)


class NoGradient(torch.autograd.Function):
    """Joins what came from a trunk to the graph of what was sent, and says why no gradient goes that way."""

    @staticmethod
    def forward(ctx: Any, sent_BTH: torch.Tensor, received_BTH: torch.Tensor) -> torch.Tensor:
        """Return what was received."""
        return received_BTH.view_as(received_BTH)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Refuse, instead of leaving the Bottom without gradients in silence."""
        raise UnsupportedOptionError(NO_GRADIENT)


def joined(sent_BTH: torch.Tensor, received_BTH: torch.Tensor) -> torch.Tensor:
    """Return what was received, without a graph of its own, in the device and dtype of what was sent."""
    converted_BTH = received_BTH.to(device=sent_BTH.device, dtype=sent_BTH.dtype)
    if not (sent_BTH.requires_grad and torch.is_grad_enabled()):
        return converted_BTH
    out_BTH: torch.Tensor = NoGradient.apply(sent_BTH, converted_BTH)  # type: ignore[no-untyped-call]
    return out_BTH
