"""How many train at a time and what they may keep, what is forgotten, and what is left of who begins or ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch

from splitlearn_comm import PassExpiredError, ResourceExhaustedError
from splitlearn_comm.training import (
    BackwardPass,
    ForwardPass,
    ParameterGroup,
    ReadTraining,
    StartTraining,
    Trained,
    TrainingState,
    WriteTraining,
)
from splitlearn_core.testing import random_hidden, tiny_trunk
from splitlearn_manager.runtime import training_desk
from splitlearn_manager.runtime.figures import TrainingUse
from splitlearn_manager.runtime.training_desk import TrainingDesk, TrainingLimits

torch.set_num_threads(1)
HIDDEN_BTH = random_hidden(2, 5)
Check = Callable[[TrainingDesk], Awaitable[None]]


class Clock:
    """Ahead of the time by so much."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


def with_desk(check: Check, limits: TrainingLimits | None = None, clock: Clock | None = None) -> None:
    async def run() -> None:
        desk = TrainingDesk(
            tiny_trunk(), "training", limits or TrainingLimits(max_trainings=1), clock or time.monotonic
        )
        try:
            await check(desk)
        finally:
            await desk.shutdown()
        assert desk.use().num_bytes == 0

    asyncio.run(run())


async def forward(desk: TrainingDesk, session_id: str, pass_id: int) -> None:
    assert isinstance(await desk.do(session_id, ForwardPass(pass_id, HIDDEN_BTH)), torch.Tensor)


async def backward(desk: TrainingDesk, session_id: str, pass_id: int) -> None:
    assert isinstance(await desk.do(session_id, BackwardPass(pass_id, torch.ones_like(HIDDEN_BTH))), Trained)


def test_one_that_is_beginning_counts() -> None:
    async def check(desk: TrainingDesk) -> None:
        first = asyncio.create_task(desk.do("first", StartTraining()))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError, match="1 clients train here"):
            await desk.do("second", StartTraining())
        await first
        await desk.close("first")
        await desk.do("second", StartTraining())

    with_desk(check)


def test_one_that_is_closed_while_it_begins_is_not_kept() -> None:
    async def check(desk: TrainingDesk) -> None:
        start = asyncio.create_task(desk.do("gone", StartTraining(full=True, optimizer="SGD")))
        await asyncio.sleep(0)
        await desk.close("gone")
        await start
        assert "gone" not in desk
        assert desk.use() == TrainingUse()
        await desk.do("other", StartTraining())

    with_desk(check, TrainingLimits(max_trainings=1, allow_full=True))


async def pass_bytes(desk: TrainingDesk) -> int:
    """What one forward keeps; of two trainings, one is left."""
    await desk.do("a", StartTraining())
    await forward(desk, "a", 1)
    return desk.use().num_bytes


def test_what_all_keep_together_is_bounded_and_told() -> None:
    sizes: list[int] = []

    async def measure(desk: TrainingDesk) -> None:
        sizes.append(await pass_bytes(desk))

    with_desk(measure)
    (size,) = sizes

    async def check(desk: TrainingDesk) -> None:
        assert await pass_bytes(desk) == size
        await desk.do("b", StartTraining())
        await forward(desk, "b", 1)
        with pytest.raises(ResourceExhaustedError, match=rf"here of at most {3 * size - 1}: train with recompute=True"):
            await forward(desk, "b", 2)
        assert desk.use() == TrainingUse(num_trainings=2, num_passes=2, num_bytes=2 * size, limit_bytes=3 * size - 1)
        await desk.close("a")
        await forward(desk, "b", 2)
        await backward(desk, "b", 1)
        assert desk.use().num_passes == 1

    with_desk(check, TrainingLimits(max_bytes=3 * size - 1))


def test_a_forward_that_waits_too_long_is_forgotten_with_anybodys_next_step() -> None:
    clock = Clock()

    async def check(desk: TrainingDesk) -> None:
        await desk.do("slow", StartTraining())
        await forward(desk, "slow", 1)
        clock.ahead_s = 59
        await forward(desk, "slow", 2)
        assert desk.use().num_passes == 2
        clock.ahead_s = 61
        await desk.do("other", StartTraining())
        assert desk.use() == TrainingUse(num_trainings=2)
        with pytest.raises(PassExpiredError, match="run its forward again"):
            await backward(desk, "slow", 1)

    with_desk(check, TrainingLimits(pass_timeout_s=60), clock)


def test_a_state_that_comes_counts_until_it_is_there() -> None:
    async def check(desk: TrainingDesk) -> None:
        await desk.do("a", StartTraining())
        part = WriteTraining(TrainingState(1, {"exp_avg x": torch.zeros(100)}, 3))
        await desk.do("a", part)
        await desk.do("a", part)
        assert desk.use().num_bytes == 400
        with pytest.raises(ResourceExhaustedError, match="the state of a training needs 400 bytes"):
            await desk.do("a", WriteTraining(TrainingState(1, {"exp_avg y": torch.zeros(100)}, 3)))

    with_desk(check, TrainingLimits(max_bytes=500))


async def read(desk: TrainingDesk, session_id: str, first: int) -> TrainingState:
    came = await desk.do(session_id, ReadTraining(first))
    assert isinstance(came, Trained)
    assert came.state is not None
    return came.state


def test_a_state_is_read_in_parts_of_which_each_is_copied_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = dict(tiny_trunk().named_parameters())
    num_bytes = sum(parameter.nbytes for parameter in trained.values())
    monkeypatch.setattr(training_desk, "STATE_PART_BYTES", num_bytes // 5)
    copied: list[int] = []
    to: Callable[..., torch.Tensor] = torch.Tensor.to

    def noting(tensor: torch.Tensor, *args: Any, copy: bool = False, **options: Any) -> torch.Tensor:
        copied.append(tensor.nbytes * copy)
        return to(tensor, *args, copy=copy, **options)

    async def check(desk: TrainingDesk) -> None:
        group = ParameterGroup(tuple(trained), {"lr": 0.1})
        await desk.do("a", StartTraining(full=True, optimizer="SGD", groups=[group]))
        monkeypatch.setattr(torch.Tensor, "to", noting)
        parts = [await read(desk, "a", 0)]
        while (num_read := sum(len(part.tensors) for part in parts)) < parts[0].num_tensors:
            parts.append(await read(desk, "a", num_read))
        assert 3 <= len(parts) <= 5
        came = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        assert list(came) == [f"parameter {name}" for name in trained]
        assert all(torch.equal(came[f"parameter {name}"], parameter) for name, parameter in trained.items())
        assert sum(copied) == num_bytes

    with_desk(check, TrainingLimits(allow_full=True))
