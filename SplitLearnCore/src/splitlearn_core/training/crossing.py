"""Gradients across the cut: what is backward here is a message there.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import logging
from typing import Any

import torch

from splitlearn_core.errors import PassExpiredError, StaleGradientError
from splitlearn_core.parts.port import TrunkPort
from splitlearn_core.training.port import TrunkTraining
from splitlearn_core.training.proxies import GradientProxies
from splitlearn_core.training.seeding import DropoutSeed

logger = logging.getLogger(__name__)


class TrunkPasses:
    """The passes of one client through one trunk.

    Args:
        trunk: the trunk as others see it.
        training: its training.
        proxies: of its trainable parameters; none where it is frozen.
        seed: what its dropout is drawn from where nobody says otherwise.
    """

    def __init__(self, trunk: TrunkPort, training: TrunkTraining, proxies: GradientProxies, seed: int) -> None:
        self.training = training
        self.proxies = proxies
        self.update_id = 0
        self._trunk = trunk
        self._seed = seed
        self._dtype = trunk.info.dtype
        self.next_pass_id = 1
        self.trained_trunk = self._trained_trunk()
        """The trunk as of the last update, for forwards that are no passes; None where nothing of it trains."""

    @property
    def is_trainable(self) -> bool:
        """Whether the trunk has parameters that train."""
        return bool(self.proxies.parameters)

    def run(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        dropout: DropoutSeed | None,
    ) -> torch.Tensor:
        """Run the trunk as a part of the graph."""
        pass_id = self._take_pass_id()
        seed = dropout or DropoutSeed(self._seed, pass_id)
        if not (self.is_trainable or hidden_BTH.requires_grad):
            sent_BTH = hidden_BTH.to(self._dtype)
            left = self.training.forward(
                pass_id, sent_BTH, attention_mask, position_ids, dropout=seed, has_backward=False
            )
            return left.to(hidden_BTH.dtype)
        left_BTH: torch.Tensor = CrossTrunk.apply(  # type: ignore[no-untyped-call]
            hidden_BTH.to(self._dtype), self.proxies.first, self, pass_id, attention_mask, position_ids, seed
        )
        return left_BTH.to(hidden_BTH.dtype)

    def update(self, options: list[dict[str, Any]]) -> None:
        """Do one step of the trunk's optimizer, if there are gradients, as every optimizer of torch does."""
        if self.proxies.is_clear:
            return
        self.training.update(self.update_id + 1, options, self.proxies.scale())
        self.update_id += 1

    def restart(self, training: TrunkTraining, update_id: int, next_pass_id: int) -> None:
        """Go on with another trunk, or with the same one anew."""
        self.training.close()
        self.training, self.update_id, self.next_pass_id = training, update_id, next_pass_id
        self.trained_trunk = self._trained_trunk()

    def _trained_trunk(self) -> TrunkPort | None:
        return self._trunk.trained_by(self.training) if self.is_trainable else None

    def _take_pass_id(self) -> int:
        self.next_pass_id += 1
        return self.next_pass_id - 1

    def close(self) -> None:
        """Free what the trunk keeps."""
        self.training.close()

    def backward(self, ctx: Any, gradient_BTH: torch.Tensor) -> torch.Tensor | None:
        """Send a gradient back through the trunk, and the forward again where that is forgotten."""
        try:
            return self._send_back(ctx.pass_id, ctx, gradient_BTH)
        except PassExpiredError as error:
            if ctx.update_id != self.update_id:
                # Run again it would be a forward of other weights than those that the loss was computed with.
                raise StaleGradientError(
                    f"the forward of pass {ctx.pass_id} ran after update {ctx.update_id}, and now update "
                    f"{self.update_id} is done: its gradient is of other weights; run the forward again"
                ) from error
            pass_id = self._take_pass_id()
            logger.warning("%s; done, as pass %d", error, pass_id)
            self.training.forward(pass_id, *ctx.saved_tensors, *ctx.beside, dropout=ctx.dropout)
            return self._send_back(pass_id, ctx, gradient_BTH)

    def _send_back(self, pass_id: int, ctx: Any, gradient_BTH: torch.Tensor) -> torch.Tensor | None:
        clear = self.proxies.is_clear
        result = self.training.backward(
            pass_id,
            gradient_BTH,
            wants_input_gradient=ctx.needs_input_grad[0],
            accumulate=not clear,
            scale=None if clear else self.proxies.scale(),
        )
        self.proxies.take(result.norms_N)
        return result.gradient_BTH


class CrossTrunk(torch.autograd.Function):
    """The trunk as one node of the client's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_BTH: torch.Tensor,
        first_proxy: torch.Tensor | None,
        passes: TrunkPasses,
        pass_id: int,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        dropout: DropoutSeed,
    ) -> torch.Tensor:
        """Run the layers there."""
        ctx.passes, ctx.pass_id, ctx.dropout = passes, pass_id, dropout
        ctx.beside = (attention_mask, position_ids)
        ctx.update_id = passes.update_id
        ctx.save_for_backward(hidden_BTH)
        return passes.training.forward(pass_id, hidden_BTH, attention_mask, position_ids, dropout=dropout)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Send the gradient there; that of the trunk's own parameters stays there."""
        return (ctx.passes.backward(ctx, gradients[0]), *(None,) * 6)
