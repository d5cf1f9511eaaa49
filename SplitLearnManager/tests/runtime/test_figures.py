"""What an engine did, in numbers: as they are added, as they travel, and as a host tells them."""

import asyncio
import threading
import time

import torch
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_comm import Forward
from splitlearn_comm.worker import TURN, Turn
from splitlearn_core.engine import EngineLimits
from splitlearn_core.engine.steps import Batch, BatchKind, Chunk, Step, StepKind
from splitlearn_core.testing import random_hidden, tiny_trunk
from splitlearn_manager.runtime.cache_book import CacheLimits
from splitlearn_manager.runtime.engine_driver import ASKED_S
from splitlearn_manager.runtime.engine_on_loop import EngineOnLoop
from splitlearn_manager.runtime.figures import ROWS_EDGES, Distribution, EngineFigures, EngineReading, TrainingUse
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk

torch.set_num_threads(1)


def read(figures: EngineFigures) -> EngineReading:
    trainings = TrainingUse(num_trainings=1, num_passes=2, num_bytes=700, limit_bytes=1000)
    return figures.reading(num_sessions=2, cached_tokens=5, kv_bytes=80, kv_limit_bytes=None, trainings=trainings)


def step(ticket: int, num_tokens: int, arrival_s: float) -> Step:
    return Step(
        ticket=ticket,
        session_id=str(ticket),
        client="",
        kind=StepKind.FORWARD,
        arrival_s=arrival_s,
        num_rows=2,
        num_tokens=num_tokens,
    )


def test_a_batch_is_one_forward_and_each_step_waits_for_its_first_chunk() -> None:
    figures = EngineFigures()
    prompt = step(1, 10, arrival_s=1.0)
    short = (step(2, 1, arrival_s=2.0), step(3, 1, arrival_s=1.5))
    figures.add(Batch(kind=BatchKind.PROMPT, chunks=(Chunk(step=prompt, begin=0, end=6),)), 1.25, 2.25)
    figures.add(Batch(kind=BatchKind.JOINED, chunks=tuple(Chunk(step=s, begin=0, end=1) for s in short)), 3.0, 3.5)
    figures.add(Batch(kind=BatchKind.PROMPT, chunks=(Chunk(step=prompt, begin=6, end=10),)), 3.5, 4.0)
    reading = read(figures)
    assert reading.forward_s.sum == 1.0 + 0.5 + 0.5
    assert reading.queue_s.sum == 0.25 + 1.0 + 1.5
    assert sum(reading.queue_s.counts) == 3
    assert dict(zip(ROWS_EDGES, reading.rows.counts, strict=False))[2] == 2
    assert dict(zip(ROWS_EDGES, reading.rows.counts, strict=False))[4] == 1
    assert reading.num_tokens == 12 + 4 + 8


def test_what_changes_a_cache_is_no_forward() -> None:
    figures = EngineFigures()
    figures.add(Batch(kind=BatchKind.OTHER, chunks=(Chunk(step=step(1, 0, 1.0), begin=0, end=0),)), 2.0, 3.0)
    assert sum(read(figures).forward_s.counts) == sum(read(figures).queue_s.counts) == 0


@given(st.lists(st.floats(0, 100)))
def test_a_reading_travels_as_it_is(values: list[float]) -> None:
    figures = EngineFigures()
    for value in values:
        figures.queue_s.add(value)
    assert EngineReading.from_json(read(figures).to_json()) == read(figures)


@given(st.floats(0, 300))
def test_a_value_falls_into_the_first_bucket_whose_edge_it_does_not_pass(value: float) -> None:
    distribution = Distribution(ROWS_EDGES)
    distribution.add(value)
    edges = [*ROWS_EDGES, float("inf")]
    assert edges[distribution.counts.index(1)] == min(edge for edge in edges if value <= edge)


def test_a_host_tells_what_it_did_and_what_it_holds() -> None:
    async def serve() -> EngineReading:
        host = HostedTrunk(tiny_trunk(), name="tiny", cache_limits=CacheLimits(max_bytes=1 << 20))
        for name in "ab":
            await host.open_session(name)
            await host.run_step(name, Forward(random_hidden(1, 3)))
        await host.close_session("b")
        reading = await host.read()
        await host.teardown()
        return reading

    reading = asyncio.run(serve())
    assert (reading.num_tokens, reading.num_sessions, reading.cached_tokens) == (6, 1, 3)
    assert reading.kv_limit_bytes == 1 << 20
    assert 0 < reading.kv_bytes < 1 << 20
    assert sum(reading.forward_s.counts) == sum(reading.queue_s.counts) == 2
    assert reading.queue_s.sum > 0


def test_a_step_waits_from_when_it_was_asked_for_and_not_from_when_the_thread_looked() -> None:
    async def serve() -> tuple[float, float, float]:
        host = HostedTrunk(tiny_trunk(), name="tiny", engine_limits=EngineLimits(wait_share=0))
        await host.open_session("a")
        may_go_on = threading.Event()
        busy = asyncio.create_task(host._driver.run(lambda _: may_go_on.wait(20)))
        await asyncio.sleep(0)
        asked_s = time.perf_counter()
        turn = Turn()
        TURN.set(turn)
        waiting = asyncio.create_task(host.run_step("a", Forward(random_hidden(1, 1))))
        await asyncio.sleep(0.05)  # what is measured
        may_go_on.set()
        await asyncio.gather(busy, waiting)
        waited_s = (await host.read()).queue_s.sum
        await host.teardown()
        return waited_s, turn.began_s - asked_s, time.perf_counter() - asked_s

    waited_s, told_s, most_s = asyncio.run(serve())
    assert 0.04 < waited_s <= told_s < most_s


def test_on_a_loop_it_waits_from_when_the_other_process_sent_it() -> None:
    async def serve() -> float:
        host = HostedTrunk(
            tiny_trunk(),
            name="tiny",
            engine_limits=EngineLimits(wait_share=0),
            drives=lambda engine, _: EngineOnLoop(engine),
        )
        await host.open_session("a")
        ASKED_S.set(time.perf_counter() - 5.0)
        await host.run_step("a", Forward(random_hidden(1, 1)))
        return (await host.read()).queue_s.sum

    assert 5.0 < asyncio.run(serve()) < 20.0
