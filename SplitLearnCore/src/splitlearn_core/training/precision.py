"""Mixed precision across the cut: the trunk runs under the autocast that is on at the client.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import torch


def autocast_on(device: torch.device) -> torch.dtype | None:
    """Return the dtype of the autocast that is on here and now for a device, None where none is."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def autocast_as(autocast: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Return the context in which layers on a device run under an autocast of a dtype, or under none."""
    return torch.autocast(device.type, dtype=autocast, enabled=autocast is not None)


def crosses_unchanged(trunk_dtype: torch.dtype, autocast: torch.dtype | None) -> bool:
    """Whether hidden states go to a trunk and come from it in the dtype that they happen to have.

    Under autocast the weights are float32, and between two layers is what the one before made of them: float32 or the
    dtype of the autocast, as the architecture has it. The next layer gets that in the whole model, too. A trunk whose
    own weights are of another dtype gets that one, with autocast as without.
    """
    return autocast is not None and trunk_dtype == torch.float32
