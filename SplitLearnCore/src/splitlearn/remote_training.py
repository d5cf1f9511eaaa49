"""The one adapter between a Comm session that trains and what Core needs of a trunk that is trained.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from splitlearn_comm import (
    AdapterNotFoundError,
    CommError,
    DeadlineExceededError,
    InvalidRequestError,
    PassExpiredError,
    ResourceExhaustedError,
    ServerUnavailableError,
    SessionNotFoundError,
    StaleGradientError,
    StepOrderError,
)
from splitlearn_comm.client import ClientSession
from splitlearn_comm.messages import RoleCodecs
from splitlearn_comm.training import (
    STATE_PART_BYTES,
    BackwardPass,
    ForwardPass,
    ParameterGroup,
    PublishAdapter,
    ReadTraining,
    StartTraining,
    Trained,
    TrainingAction,
    TrainingState,
    Update,
    WriteTraining,
)
from splitlearn_core import TrainingError, errors
from splitlearn_core.training.port import BackwardResult, TrunkTraining, TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed

logger = logging.getLogger(__name__)
ERRORS: dict[type[Exception], type[TrainingError]] = {
    PassExpiredError: errors.PassExpiredError,
    StaleGradientError: errors.StaleGradientError,
    InvalidRequestError: TrainingError,
}
"""What the wire calls an error, and Core."""
LOST: tuple[type[CommError], ...] = (
    ServerUnavailableError,
    SessionNotFoundError,
    StepOrderError,
    DeadlineExceededError,
)
"""What a session says whose server is gone, was started again, has freed it, or is too slow: it is over then."""
LOST_TO_OTHERS: tuple[type[CommError], ...] = (AdapterNotFoundError, SessionNotFoundError)
"""What other sessions and calls that compute with what trains are told then."""


class TrunkBusyError(ResourceExhaustedError, errors.TrainingBusyError):
    """The server has no room for this training now."""


class RemoteTraining(TrunkTraining):
    """A trunk on a server that is trained.

    Args:
        session: just opened.
        spec: what trains and how.
        dtype: of the trunk's hidden states.

    Raises:
        TrainingError: what the specification asks for is not there.
        TrunkBusyError: the server has no room for it now.
        CommError: the server refuses it for another reason.
    """

    def __init__(self, session: ClientSession, spec: TrunkTrainingSpec) -> None:
        self._session = session
        self.adapter = session.session_id
        """Under what name other sessions and calls of this client compute with what trains."""
        self.codecs = named_codecs(session.codecs)
        self._trains = spec.full or spec.lora is not None
        groups = [ParameterGroup(group.names, group.options) for group in spec.groups]
        beside = (spec.full, spec.optimizer, groups, spec.recompute, self.adapter)
        try:
            self._do(StartTraining(spec.lora, spec.tensors or {}, *beside))
        except BaseException as error:
            session.close()  # nobody else has it, and it would keep a place at the server
            if isinstance(error, ResourceExhaustedError):
                raise TrunkBusyError(str(error), retry_after_s=error.retry_after_s) from error
            raise

    def forward(
        self,
        pass_id: int,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        dropout: DropoutSeed,
        has_backward: bool = True,
        autocast: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Run the layers in train mode and keep what the backward needs."""
        beside = (attention_mask, position_ids, dropout.seed, dropout.step, has_backward, autocast)
        step = ForwardPass(pass_id, hidden_BTH.detach(), *beside)
        left_BTH = self._do(step).gradient
        assert left_BTH is not None, "the cursor checks that a forward is answered by a tensor"
        return left_BTH.to(hidden_BTH.device)

    def backward(
        self,
        pass_id: int,
        gradient_BTH: torch.Tensor,
        *,
        wants_input_gradient: bool = True,
        accumulate: bool = True,
        scale: torch.Tensor | None = None,
    ) -> BackwardResult:
        """Take the gradient of what a forward returned through its layers."""
        step = BackwardPass(pass_id, gradient_BTH, wants_input_gradient, accumulate, number(scale))
        came = self._do(step)
        gradient = None if came.gradient is None else came.gradient.to(gradient_BTH.device)
        return BackwardResult(gradient, torch.tensor(came.norms))

    def update(self, update_id: int, options: Sequence[Mapping[str, Any]], scale: torch.Tensor | None = None) -> None:
        """Do one step of the optimizer."""
        self._do(Update(update_id, options, number(scale)))

    def read_state(self) -> dict[str, torch.Tensor]:
        """Return what was trained and the optimizer's state, by name."""
        tensors: dict[str, torch.Tensor] = {}
        while True:
            state = self._do(ReadTraining(len(tensors))).state
            assert state is not None, "a read is answered by a state"
            tensors.update(state.tensors)
            if not state.tensors or len(tensors) >= state.num_tensors:
                return tensors

    def write_state(self, state: Mapping[str, torch.Tensor], update_id: int) -> None:
        """Go on from what `read_state` returned after an update."""
        part: dict[str, torch.Tensor] = {}
        for number_, (name, tensor) in enumerate(state.items(), start=1):
            part[name] = tensor
            if number_ == len(state) or sum(t.nbytes for t in part.values()) >= STATE_PART_BYTES:
                self._do(WriteTraining(TrainingState(update_id, part, len(state))))
                part = {}

    def publish(self, name: str) -> None:
        """Keep a copy of the adapter on the server, beyond the training."""
        self._do(PublishAdapter(name))

    def close(self) -> None:
        """Free everything on the server."""
        self._session.close()

    def _do(self, action: TrainingAction) -> Trained:
        try:
            with saying_that_it_is_lost(LOST):
                came = self._session.train(action)
        except tuple(ERRORS) as error:
            kind = next(ERRORS[cls] for cls in type(error).__mro__ if cls in ERRORS)
            raise kind(str(error)) from error
        self._note_ending()
        if (breakdown := self._session.breakdown) is not None:
            self.network_s = (self.network_s or 0.0) + breakdown.network_s
        return came

    def _note_ending(self) -> None:
        was_ending, self.is_ending = self.is_ending, self._trains and self._session.is_server_stopping
        if self.is_ending and not was_ending:
            logger.warning(
                "the trunk's server is stopping: a checkpoint that is saved now keeps what it has of this training"
            )


@contextmanager
def saying_that_it_is_lost(kinds: tuple[type[CommError], ...]) -> Iterator[None]:
    """Raise `TrainingLostError` in place of errors of some kinds; none of them for a trunk that does not train."""
    try:
        yield
    except kinds as error:
        raise errors.TrainingLostError(
            f"this training is lost where it ran ({error}); run.resume(tag) goes on from a checkpoint, there or at "
            "another server at the same address"
        ) from error


def number(scale: torch.Tensor | None) -> float | None:
    """Return a float32 scalar as a number."""
    return None if scale is None else scale.item()


def named_codecs(codecs: RoleCodecs) -> dict[str, str]:
    """Return the codecs of hidden states and gradients that are not raw, by role and direction."""
    named = {
        f"{role} to {where}": name
        for role, each in codecs.by_role()
        if role != "kv"
        for where, name in (("server", each.to_server), ("client", each.to_client))
    }
    return {where: name for where, name in named.items() if name}
