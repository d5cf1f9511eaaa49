"""How many train at a time, and what is left of one whose session is closed while it begins."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from splitlearn_comm import ResourceExhaustedError
from splitlearn_comm.training import StartTraining
from splitlearn_core.testing import tiny_trunk
from splitlearn_manager.runtime.training_desk import TrainingDesk, TrainingLimits


def with_desk(check: Callable[[TrainingDesk], Awaitable[None]]) -> None:
    async def run() -> None:
        desk = TrainingDesk(tiny_trunk(), "training", TrainingLimits(max_trainings=1))
        try:
            await check(desk)
        finally:
            await desk.shutdown()

    asyncio.run(run())


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
        start = asyncio.create_task(desk.do("gone", StartTraining()))
        await asyncio.sleep(0)
        await desk.close("gone")
        await start
        assert "gone" not in desk
        await desk.do("other", StartTraining())

    with_desk(check)
