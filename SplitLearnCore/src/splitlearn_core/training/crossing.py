"""Gradients across the cut: what is backward here is a message there.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from splitlearn_core.errors import PassExpiredError, StaleGradientError, TrainingError
from splitlearn_core.parts.port import TrunkPort
from splitlearn_core.training.guard import BOTTOM_EXIT, LOSS, TOP_ENTRY, TRUNK, Guard
from splitlearn_core.training.port import TrunkTraining
from splitlearn_core.training.precision import autocast_on, crosses_unchanged
from splitlearn_core.training.proxies import GradientProxies
from splitlearn_core.training.seeding import DropoutSeed

logger = logging.getLogger(__name__)


class Beside(NamedTuple):
    """What goes to the trunk beside the hidden states of a forward."""

    attention_mask: torch.Tensor | None
    """[B, T] where there is padding."""
    position_ids: torch.Tensor | None
    """[B, T] where they do not count from 0."""
    dropout: DropoutSeed
    autocast: torch.dtype | None
    """That is on at the client; None for none."""


class TrunkPasses:
    """The passes of one client through one trunk.

    Args:
        trunk: the trunk as others see it.
        training: its training.
        proxies: of its trainable parameters; none where it is frozen.
        seed: what its dropout is drawn from where nobody says otherwise.
        guard: is told the norms of the gradients that cross the cuts; None where nobody looks at them.
    """

    def __init__(
        self,
        trunk: TrunkPort,
        training: TrunkTraining,
        proxies: GradientProxies,
        seed: int,
        guard: Guard | None = None,
    ) -> None:
        self.training = training
        self.proxies = proxies
        self.guard = guard
        self.update_id = 0
        self._trunk = trunk
        self._seed = seed
        self._dtype = trunk.info.dtype
        self.next_pass_id = 1
        self._waited_s = 0.0
        self._is_closed = False
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
        autocast = autocast_on(hidden_BTH.device)
        beside = Beside(attention_mask, position_ids, dropout or DropoutSeed(self._seed, pass_id), autocast)
        if crosses_unchanged(self._dtype, autocast):
            return self._pass_through(pass_id, hidden_BTH, beside)
        return self._pass_through(pass_id, hidden_BTH.to(self._dtype), beside).to(hidden_BTH.dtype)

    def _pass_through(self, pass_id: int, hidden_BTH: torch.Tensor, beside: Beside) -> torch.Tensor:
        if not (self.is_trainable or hidden_BTH.requires_grad):
            return self.forward(pass_id, hidden_BTH, beside, has_backward=False)
        left_BTH: torch.Tensor = CrossTrunk.apply(  # type: ignore[no-untyped-call]
            hidden_BTH, self.proxies.first, self, pass_id, beside
        )
        return left_BTH

    def forward(
        self, pass_id: int, hidden_BTH: torch.Tensor, beside: Beside, *, has_backward: bool = True
    ) -> torch.Tensor:
        """Send hidden states through the trunk, for the first time or once more."""
        with self.waiting():
            return self.training.forward(
                pass_id,
                hidden_BTH,
                beside.attention_mask,
                beside.position_ids,
                dropout=beside.dropout,
                has_backward=has_backward,
                autocast=beside.autocast,
            )

    def see_loss(self, loss: torch.Tensor) -> None:
        """Tell the guard of a loss that is not finite: the gradients of it will not be either, in any part."""
        if self.guard is not None and torch.is_grad_enabled() and not bool(loss.detach().isfinite().all()):
            self.guard.see(LOSS, math.nan)

    def update(self, options: list[dict[str, Any]]) -> None:
        """Do one step of the trunk's optimizer, if there are gradients, as every optimizer of torch does."""
        if self._is_closed:
            raise TrainingError("this run is closed: begin another with model.start_training(...)")
        if self.proxies.is_clear:
            return
        with self.waiting():
            self.training.update(self.update_id + 1, options, self.proxies.scale())
        self.update_id += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as time spent waiting for the trunk."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._waited_s += time.perf_counter() - began_s

    def seconds(self) -> dict[str, float]:
        """Return how long the trunk was waited for up to now, and how much of that went to the network where known."""
        network_s = self.training.network_s
        return {"trunk": self._waited_s} | ({} if network_s is None else {"network": network_s})

    def restart(self, training: TrunkTraining, update_id: int, next_pass_id: int) -> None:
        """Go on with another trunk, or with the same one anew."""
        self.training.close()
        self.training, self.update_id, self.next_pass_id = training, update_id, next_pass_id
        self._is_closed = False
        self.trained_trunk = self._trained_trunk()

    def _trained_trunk(self) -> TrunkPort | None:
        return self._trunk.trained_by(self.training) if self.is_trainable else None

    def _take_pass_id(self) -> int:
        self.next_pass_id += 1
        return self.next_pass_id - 1

    def close(self) -> None:
        """Free what the trunk keeps."""
        self._is_closed = True
        self.training.close()

    def backward(self, ctx: Any, gradient_BTH: torch.Tensor) -> torch.Tensor | None:
        """Send a gradient back through the trunk, and the forward again where that is forgotten.

        One that is not finite is not sent: NaN comes out of it in any case, and the trunk need not be asked.
        """
        if not self._is_sound(TOP_ENTRY, gradient_BTH) or self.proxies.is_poisoned or not ctx.was_sent:
            self.proxies.poison()
            return torch.full_like(ctx.saved_tensors[0], math.nan) if ctx.needs_input_grad[0] else None
        gradient = self._through(ctx, gradient_BTH)
        if gradient is not None:
            self._is_sound(BOTTOM_EXIT, gradient)
        return gradient

    def _is_sound(self, where: str, gradient: torch.Tensor) -> bool:
        norm = norm_of(gradient)
        if self.guard is not None:
            self.guard.see(where, norm)
        return math.isfinite(norm)

    def _through(self, ctx: Any, gradient_BTH: torch.Tensor) -> torch.Tensor | None:
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
            (hidden_BTH,) = ctx.saved_tensors
            self.forward(pass_id, hidden_BTH, ctx.beside)
            return self._send_back(pass_id, ctx, gradient_BTH)

    def _send_back(self, pass_id: int, ctx: Any, gradient_BTH: torch.Tensor) -> torch.Tensor | None:
        clear = self.proxies.is_clear
        with self.waiting():
            result = self.training.backward(
                pass_id,
                gradient_BTH,
                wants_input_gradient=ctx.needs_input_grad[0],
                accumulate=not clear,
                scale=None if clear else self.proxies.scale(),
            )
        self.proxies.take(result.norms_N)
        if self.guard is not None and len(result.norms_N):
            self.guard.see(TRUNK, norm_of(result.norms_N))
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
        beside: Beside,
    ) -> torch.Tensor:
        """Run the layers there."""
        ctx.passes, ctx.pass_id, ctx.beside = passes, pass_id, beside
        ctx.update_id = passes.update_id
        ctx.save_for_backward(hidden_BTH)
        ctx.was_sent = math.isfinite(norm_of(hidden_BTH))
        if not ctx.was_sent:  # a server would refuse it, and NaN is what every trunk makes of it
            return torch.full_like(hidden_BTH, math.nan)
        return passes.forward(pass_id, hidden_BTH, beside)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Send the gradient there; that of the trunk's own parameters stays there."""
        return (ctx.passes.backward(ctx, gradients[0]), *(None,) * 4)


def norm_of(tensor: torch.Tensor) -> float:
    """Return a tensor's norm; NaN or infinite if one of its elements is."""
    norm: float = torch.linalg.vector_norm(tensor, dtype=torch.float32).item()
    return norm
