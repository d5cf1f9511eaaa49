"""What a session can ask the engine for.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class RunTokens:
    """Run tokens through the layers and append them to the session's cache; answered by hidden states [B, T, H]."""

    hidden_BTH: torch.Tensor
    """Hidden states [B, T, H] in the trunk's dtype, on any device."""
    attention_mask: torch.Tensor | None = None
    """[B, P + T], 1 for tokens and 0 for padding; None without padding."""
    position_ids: torch.Tensor | None = None
    """[B, T]; None to go on from the cache."""


@dataclass(frozen=True, kw_only=True)
class ReorderRows:
    """Replace the rows of the session's cache by its rows `indices`."""

    indices: tuple[int, ...]
    """Rows; one may come twice, and their number may change."""


@dataclass(frozen=True, kw_only=True)
class CropTokens:
    """Take the last tokens back."""

    num_tokens: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class StartRecording:
    """Keep from now on what a later crop may need."""


Action = RunTokens | ReorderRows | CropTokens | StartRecording
"""Everything that a session can ask for."""
