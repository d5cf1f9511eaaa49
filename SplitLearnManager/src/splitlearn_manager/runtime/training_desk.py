"""The trainings of a hosted trunk: one copy of its layers for each, one thread for all.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from splitlearn_comm.logs import ids
from splitlearn_comm.training import (
    STATE_PART_BYTES,
    BackwardPass,
    ForwardPass,
    FreeAdapter,
    PublishAdapter,
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
from splitlearn_core.training.memory import TrainingMemory, bytes_of
from splitlearn_core.training.port import ParameterGroup, TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed
from splitlearn_core.training.trunk_trainer import TrunkTrainer
from splitlearn_manager.runtime.adapted_trunks import AdaptedTrunks
from splitlearn_manager.runtime.adapter_shelf import AdapterLimits
from splitlearn_manager.runtime.figures import TrainingUse

T = TypeVar("T")
logger = logging.getLogger(__name__)
ERRORS: dict[type[TrainingError], type[CommError]] = {
    errors.PassExpiredError: PassExpiredError,
    errors.StaleGradientError: StaleGradientError,
    errors.TrainingMemoryError: ResourceExhaustedError,
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
    adapters: AdapterLimits = field(default_factory=AdapterLimits)
    """What of it they may publish."""
    max_bytes: int | None = None
    """What all of them may keep together: weights of their own, gradients, the optimizers' state, and of forwards what
    their backwards need. None for no limit."""
    pass_timeout_s: float = 300.0
    """A forward whose backward has not come for so long is forgotten, with the next step of anybody; its client runs it
    again where the backward comes after all."""


class TrainingDesk:
    """Does the steps of sessions that train, on a thread of its own: sessions that generate do not wait for them.

    Args:
        trunk: whose layers train; not changed.
        name: the thread's.
        limits: how many may train, and what.
        clock: tells how old a forward is; that of `time.monotonic`, or ahead of it.
    """

    def __init__(
        self, trunk: Trunk, name: str, limits: TrainingLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trunk = trunk
        self._limits = limits
        self._clock = clock
        self._memory = TrainingMemory(limits.max_bytes)
        self._worker = WorkerThread(name)
        self.adapted = AdaptedTrunks(self._worker, limits.adapters)
        """What clients compute with of what they train."""
        self._names: dict[str, tuple[str, str]] = {}
        self._trainers: dict[str, TrunkTrainer] = {}
        self._starting: set[str] = set()
        self._written: dict[str, dict[str, torch.Tensor]] = {}

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._trainers

    async def do(self, session_id: str, action: TrainingAction, client: str = "") -> torch.Tensor | Trained | None:
        """Do one step of a session.

        Args:
            session_id: its name.
            action: what it asks for.
            client: whose it is.

        Raises:
            InvalidRequestError: it cannot be done so.
            PassExpiredError: the pass is not kept any more.
            StaleGradientError: the weights have changed since the forward.
            ResourceExhaustedError: too many train already, or keep too much.
            UnsupportedOperationError: all weights may not be trained here.
        """
        if isinstance(action, StartTraining):
            await self._start(session_id, action, client)
            return None
        if isinstance(action, FreeAdapter):
            self.adapted.free(client, action.name)
            return None
        trainer = self._trainers.get(session_id)
        if trainer is None:
            raise InvalidRequestError("this session does not train: begin with start_training")
        if isinstance(action, PublishAdapter):
            await self._publish(trainer, client, action.name)
            return None
        return await self._run(lambda: self._step(session_id, trainer, action))

    def use(self) -> TrainingUse:
        """Return what trainings take now."""
        trainers = list(self._trainers.values())
        return TrainingUse(
            num_trainings=len(trainers),
            num_passes=sum(trainer.num_passes for trainer in trainers),
            num_bytes=self._memory.num_bytes,
            limit_bytes=self._memory.limit_bytes,
        )

    async def close(self, session_id: str) -> None:
        """Free what a session trained, if it did."""
        self._starting.discard(session_id)
        trainer = self._trainers.pop(session_id, None)
        named = self._names.pop(session_id, None)
        if named is not None:
            self.adapted.take_away(*named)
        if trainer is not None:
            logger.info("session %s trains no more: %s", session_id, trainer, extra=ids(session=session_id))
            await self._worker.run(lambda: self._end(session_id, trainer))

    def _end(self, session_id: str, trainer: TrunkTrainer) -> None:
        trainer.close()
        self._memory.give_back(bytes_of(self._written.pop(session_id, {}).values()))

    async def shutdown(self) -> None:
        """Free all, and end the thread."""
        for session_id in list(self._trainers):
            await self.close(session_id)
        self.adapted.clear()
        await self._worker.shutdown()

    async def _start(self, session_id: str, start: StartTraining, client: str) -> None:
        self._check_start(session_id, start)
        self.adapted.check_free(client, start.name)
        self._starting.add(session_id)
        try:
            trainer = await self._run(lambda: self._made(start))
            try:
                self._take_in(session_id, trainer, start.name, client)
            finally:
                if session_id not in self._trainers:  # closed meanwhile, or its name is taken: it has no owner
                    await self._worker.run(trainer.close)
        finally:
            self._starting.discard(session_id)

    def _take_in(self, session_id: str, trainer: TrunkTrainer, name: str, client: str) -> None:
        if session_id not in self._starting:
            return
        if name:
            self.adapted.check_free(client, name)  # another may have begun with it at the same time
            self.adapted.put(client, name, trainer.trunk)
            self._names[session_id] = client, name
        self._trainers[session_id] = trainer
        logger.info("session %s trains %s", session_id, trainer, extra=ids(session=session_id))

    def _made(self, start: StartTraining) -> TrunkTrainer:
        self._forget_old()
        return TrunkTrainer(self._trunk, spec_of(start), self._memory)

    def _forget_old(self) -> None:
        for trainer in list(self._trainers.values()):
            trainer.forget_passes(before_s=self._clock() - self._limits.pass_timeout_s)

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

    async def _publish(self, trainer: TrunkTrainer, client: str, name: str) -> None:
        num_bytes = await self._run(lambda: trainer.adapter_bytes)
        self.adapted.check_room(client, name, num_bytes)
        self.adapted.publish(client, name, await self._run(trainer.as_trained), num_bytes)

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await self._worker.run(call)
        except TrainingError as error:
            kind = next(ERRORS[cls] for cls in type(error).__mro__ if cls in ERRORS)
            raise kind(str(error)) from error

    def _step(self, session_id: str, trainer: TrunkTrainer, action: TrainingAction) -> torch.Tensor | Trained | None:
        self._forget_old()
        match action:
            case ForwardPass():
                return trainer.forward(
                    action.pass_id,
                    action.hidden,
                    action.attention_mask,
                    action.position_ids,
                    dropout=DropoutSeed(action.seed, action.seed_step),
                    has_backward=action.has_backward,
                    autocast=action.autocast,
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
                sizes = trainer.state_sizes()
                part = trainer.read_state(part_of(sizes, action.first))
                return Trained(state=TrainingState(trainer.update_id, part, len(sizes)))
            case WriteTraining():
                self._write(session_id, trainer, action.state)
                return None
            case StartTraining() | PublishAdapter() | FreeAdapter():
                raise AssertionError("it was done before")
            case _:
                assert_never(action)

    def _write(self, session_id: str, trainer: TrunkTrainer, state: TrainingState) -> None:
        so_far = self._written.get(session_id, {})
        came = {name: tensor for name, tensor in state.tensors.items() if name not in so_far}
        self._memory.take(bytes_of(came.values()), "the state of a training", "come back when others have ended")
        so_far = self._written[session_id] = so_far | came
        if len(so_far) >= state.num_tensors:
            del self._written[session_id]
            self._memory.give_back(bytes_of(so_far.values()))
            trainer.write_state(so_far, state.update_id)


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


def part_of(sizes: Mapping[str, int], first: int) -> list[str]:
    """Return the names of as many tensors from a place on as go into one message, of these bytes each."""
    part: list[str] = []
    num_bytes = 0
    for name in list(sizes)[first:]:
        part.append(name)
        num_bytes += sizes[name]
        if num_bytes >= STATE_PART_BYTES:
            break
    return part
