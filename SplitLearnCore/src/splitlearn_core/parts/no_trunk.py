"""A middle without layers: what a client model runs with where only its own half matters.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import torch

from splitlearn_core.parts.port import TrunkInfo, TrunkPort, TrunkSession


class NoTrunk(TrunkPort):
    """Hands hidden states back as they came: a client model is warmed up without asking anybody.

    Args:
        info: of the trunk that it stands for.
    """

    def __init__(self, info: TrunkInfo) -> None:
        self._info = info

    @property
    def info(self) -> TrunkInfo:
        """What the trunk would say."""
        return self._info

    def compute(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Return what came."""
        return hidden_BTH

    def open_session(self) -> TrunkSession:
        """Count tokens, and no more."""
        return NoTrunkSession()

    def close(self) -> None:
        """Do nothing."""


class NoTrunkSession(TrunkSession):
    """Hands hidden states back as they came, and counts them."""

    def __init__(self) -> None:
        self._position = 0

    @property
    def position(self) -> int:
        """Number of tokens so far."""
        return self._position

    def step(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Return what came."""
        self._position += hidden_BTH.shape[1]
        return hidden_BTH

    def reorder(self, indices: torch.Tensor) -> None:
        """Do nothing: nothing is kept of any row."""

    def crop(self, num_tokens: int) -> None:
        """Count back."""
        self._position -= num_tokens

    def start_recording(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
