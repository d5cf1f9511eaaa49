"""The trainings of a hosted trunk: one copy of its layers for each, one thread for all.

Tensor shapes: B rows, T tokens, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, assert_never

import torch

from splitlearn_comm import (
    CommError,
    InvalidRequestError,
    PassExpiredError,
    ResourceExhaustedError,
    StaleGradientError,
    UnsupportedOperationError,
)
from splitlearn_comm.training import (
    BackwardPass,
    ForwardPass,
    ReadTraining,
    StartTraining,
    Trained,
    TrainingAction,
    TrainingState,
    Update,
    WriteTraining,
)
from splitlearn_comm.worker import WorkerThread
from splitlearn_core import TrainingError, Trunk, errors
from splitlearn_core.training.port import ParameterGroup, TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed
from splitlearn_core.training.trunk_trainer import TrunkTrainer

T = TypeVar("T")
PART_BYTES = 32 << 20
"""Of a training's state, what goes into one message, its last tensor aside."""
ERRORS: dict[type[TrainingError], type[CommError]] = {
    errors.PassExpiredError: PassExpiredError,
    errors.StaleGradientError: StaleGradientError,
    TrainingError: InvalidRequestError,
}
"""What this process calls an error, and the wire."""


@dataclass(frozen=True, kw_only=True)
class TrainingLimits:
    """What clients may train."""

    max_trainings: int = 8
    """How many may train at a time."""
    allow_full: bool = False
    """Whether they may train all weights, each of a copy of the trunk."""


class TrainingDesk:
    """Does the steps of sessions that train, on a thread of its own: sessions that generate do not wait for them.

    Args:
        trunk: whose layers train; not changed.
        name: the thread's.
        limits: how many may train, and what.
    """

    def __init__(self, trunk: Trunk, name: str, limits: TrainingLimits) -> None:
        self._trunk = trunk
        self._limits = limits
        self._worker = WorkerThread(name)
        self._trainers: dict[str, TrunkTrainer] = {}
        self._starting: set[str] = set()
        self._written: dict[str, dict[str, torch.Tensor]] = {}

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._trainers

    async def do(self, session_id: str, action: TrainingAction) -> torch.Tensor | Trained | None:
        """Do one step of a session.

        Raises:
            InvalidRequestError: it cannot be done so.
            PassExpiredError: the pass is not kept any more.
            StaleGradientError: the weights have changed since the forward.
            ResourceExhaustedError: too many train already.
            UnsupportedOperationError: all weights may not be trained here.
        """
        if isinstance(action, StartTraining):
            await self._start(session_id, action)
            return None
        trainer = self._trainers.get(session_id)
        if trainer is None:
            raise InvalidRequestError("this session does not train: begin with start_training")
        return await self._run(lambda: self._step(session_id, trainer, action))

    async def close(self, session_id: str) -> None:
        """Free what a session trained, if it did."""
        self._starting.discard(session_id)
        self._written.pop(session_id, None)
        trainer = self._trainers.pop(session_id, None)
        if trainer is not None:
            await self._worker.run(trainer.close)

    async def shutdown(self) -> None:
        """Free all, and end the thread."""
        for session_id in list(self._trainers):
            await self.close(session_id)
        await self._worker.shutdown()

    async def _start(self, session_id: str, start: StartTraining) -> None:
        self._check_start(session_id, start)
        self._starting.add(session_id)
        try:
            trainer = await self._run(lambda: TrunkTrainer(self._trunk, spec_of(start)))
            if session_id in self._starting:  # else it was closed meanwhile, and what was made has no owner
                self._trainers[session_id] = trainer
        finally:
            self._starting.discard(session_id)

    def _check_start(self, session_id: str, start: StartTraining) -> None:
        if session_id in self._trainers or session_id in self._starting:
            raise InvalidRequestError("this session trains already; open another")
        if start.full and not self._limits.allow_full:
            raise UnsupportedOperationError(
                "this server trains no trunk whole: train an adapter (lora=LoraConfig(...)), leave the trunk out of "
                "train=, or start the server, or load the model, with allow_full_training"
            )
        num_trainings = len(self._trainers) + len(self._starting)
        if num_trainings >= self._limits.max_trainings:
            raise ResourceExhaustedError(
                f"{num_trainings} clients train here, and no more may at a time: come back when one has ended (who "
                "is gone is forgotten after detached_session_timeout_s), or give the server more max_trainings"
            )

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await self._worker.run(call)
        except TrainingError as error:
            kind = next(ERRORS[cls] for cls in type(error).__mro__ if cls in ERRORS)
            raise kind(str(error)) from error

    def _step(self, session_id: str, trainer: TrunkTrainer, action: TrainingAction) -> torch.Tensor | Trained | None:
        match action:
            case ForwardPass():
                return trainer.forward(
                    action.pass_id,
                    action.hidden,
                    action.attention_mask,
                    action.position_ids,
                    dropout=DropoutSeed(action.seed, action.seed_step),
                    has_backward=action.has_backward,
                )
            case BackwardPass():
                result = trainer.backward(
                    action.pass_id,
                    action.gradient,
                    wants_input_gradient=action.wants_gradient,
                    accumulate=action.accumulate,
                    scale=scalar(action.scale),
                )
                return Trained(result.gradient_BTH, result.norms_N.float().tolist())
            case Update():
                trainer.update(action.update_id, action.options, scalar(action.scale))
                return None
            case ReadTraining():
                return Trained(state=part_of(trainer.read_state(), action.first, trainer.update_id))
            case WriteTraining():
                self._write(session_id, trainer, action.state)
                return None
            case StartTraining():
                raise AssertionError("it was done before")
            case _:
                assert_never(action)

    def _write(self, session_id: str, trainer: TrunkTrainer, state: TrainingState) -> None:
        so_far = self._written.setdefault(session_id, {})
        so_far.update(state.tensors)
        if len(so_far) >= state.num_tensors:
            trainer.write_state(self._written.pop(session_id), state.update_id)


def spec_of(start: StartTraining) -> TrunkTrainingSpec:
    """Return what a client asks for in this package's words."""
    return TrunkTrainingSpec(
        lora=start.adapter,
        tensors=start.tensors,
        full=start.full,
        optimizer=start.optimizer,
        groups=[ParameterGroup(names=group.names, options=group.options) for group in start.groups],
        recompute=start.recompute,
    )


def scalar(value: float | None) -> torch.Tensor | None:
    """Return a number as a float32 scalar."""
    return None if value is None else torch.tensor(value, dtype=torch.float32)


def part_of(state: dict[str, torch.Tensor], first: int, update_id: int) -> TrainingState:
    """Return as many tensors from a place on as go into one message."""
    part: dict[str, torch.Tensor] = {}
    for name in list(state)[first:]:
        part[name] = state[name]
        if sum(tensor.nbytes for tensor in part.values()) >= PART_BYTES:
            break
    return TrainingState(update_id, part, len(state))
