"""Who takes an engine's turns: on a thread, and on the event loop."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch

from splitlearn_comm import DeadlineExceededError, Forward, SessionHost
from splitlearn_comm.server.due import in_time
from splitlearn_comm.testing import SessionHostContract
from splitlearn_core import Trunk
from splitlearn_core.engine import EngineLimits, RunTokens, TrunkEngine, Turn
from splitlearn_core.testing import random_hidden, reference, tiny_trunk
from splitlearn_manager.runtime.engine_driver import EngineDriver
from splitlearn_manager.runtime.engine_on_loop import EngineOnLoop
from splitlearn_manager.runtime.engine_thread import EngineThread
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk

torch.set_num_threads(1)
Makes = Callable[[TrunkEngine], EngineDriver]
DRIVERS = pytest.mark.parametrize(
    "makes", [lambda engine: EngineThread(engine, "trunk"), EngineOnLoop], ids=["thread", "loop"]
)
NUM_SESSIONS = 6


class TestOnTheLoop(SessionHostContract):
    """A hosted trunk in a process of its own has no thread."""

    tolerance = 1e-5

    def make_host(self) -> SessionHost:
        return HostedTrunk(tiny_trunk(), name="tiny", drives=lambda engine, _: EngineOnLoop(engine))

    def make_hidden(self, batch: int, num_tokens: int) -> torch.Tensor:
        return random_hidden(batch, num_tokens, seed=torch.seed() % 1000)


class CountingEngine(TrunkEngine):
    """Notes how many rows each of its turns had."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__(trunk, EngineLimits(wait_share=1.0))
        self.rows: list[int] = []

    def turn(self) -> Turn:
        turn = super().turn()
        self.rows.append(turn.batch.num_rows if turn.batch else 0)
        return turn


@DRIVERS
def test_steps_that_wait_together_share_a_forward_and_are_exact(makes: Makes) -> None:
    trunk = tiny_trunk()
    sequences = [random_hidden(1, 4 + seed, seed) for seed in range(NUM_SESSIONS)]
    expected = [reference(trunk, sequence_BTH) for sequence_BTH in sequences]
    engine = CountingEngine(trunk)

    async def one(driver: EngineDriver, name: str, sequence_BTH: torch.Tensor) -> torch.Tensor:
        driver.open(name, client=name)
        pieces = [sequence_BTH[:, :3], *sequence_BTH[:, 3:].split(1, dim=1)]
        outputs = [await driver.step(name, RunTokens(hidden_BTH=piece)) for piece in pieces]
        driver.close(name)
        return torch.cat([output for output in outputs if output is not None], dim=1)

    async def all_of_them() -> list[torch.Tensor]:
        driver = makes(engine)
        try:
            return await asyncio.gather(*(one(driver, str(i), sequence) for i, sequence in enumerate(sequences)))
        finally:
            await driver.shutdown()

    outputs = asyncio.run(all_of_them())
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=1e-5)
    assert max(engine.rows) > 1
    assert not any(str(i) in engine for i in range(NUM_SESSIONS))


@DRIVERS
def test_a_step_of_a_session_that_is_not_open_is_refused(makes: Makes) -> None:
    async def run() -> None:
        driver = makes(TrunkEngine(tiny_trunk()))
        try:
            with pytest.raises(LookupError):
                await driver.step("nobody", RunTokens(hidden_BTH=random_hidden(1, 1)))
        finally:
            await driver.shutdown()

    asyncio.run(run())


@DRIVERS
def test_what_a_call_raises_reaches_its_caller_and_nobody_else(makes: Makes) -> None:
    async def run() -> None:
        driver = makes(TrunkEngine(tiny_trunk()))
        driver.open("a", client="")
        try:
            with pytest.raises(ZeroDivisionError):
                await driver.run(lambda _: 1 / 0)
            output = await driver.step("a", RunTokens(hidden_BTH=random_hidden(1, 2)))
            assert output is not None
            assert await driver.run(lambda engine: engine.position("a")) == 2
        finally:
            await driver.shutdown()

    asyncio.run(run())


@DRIVERS
def test_a_trunk_that_ends_the_process_fails_its_step_and_nobody_elses(makes: Makes) -> None:
    trunk = tiny_trunk()
    sequences = [random_hidden(1, 4, seed) for seed in range(3)]
    expected = [reference(trunk, sequence_BTH) for sequence_BTH in sequences]
    bad_BTH = torch.full_like(sequences[0], 1e6)

    def leave(module: torch.nn.Module, arguments: tuple[object, ...], options: dict[str, object]) -> None:
        if any(isinstance(each, torch.Tensor) and (each == 1e6).any() for each in (*arguments, *options.values())):
            sys.exit(3)

    async def main() -> list[torch.Tensor | BaseException | None]:
        driver = makes(TrunkEngine(trunk))
        try:
            for name in "0123":
                driver.open(name, client=name)
            steps = (driver.step(str(i), RunTokens(hidden_BTH=each)) for i, each in enumerate([*sequences, bad_BTH]))
            results = await asyncio.gather(*steps, return_exceptions=True)
            with pytest.raises(RuntimeError, match=r"raised SystemExit\(4\)"):
                await driver.run(lambda engine: sys.exit(4))
            return results
        finally:
            await driver.shutdown()

    hooks = [each.register_forward_pre_hook(leave, with_kwargs=True) for each in trunk.modules()]
    *outputs, error = asyncio.run(main())
    for hook in hooks:
        hook.remove()
    assert isinstance(error, RuntimeError)
    assert "raised SystemExit(3)" in str(error)
    for output, wanted in zip(outputs, expected, strict=True):
        assert isinstance(output, torch.Tensor)
        assert torch.allclose(output, wanted, atol=1e-5)


def test_a_step_whose_session_closes_before_its_turn_is_not_waited_for_any_longer() -> None:
    trunk = tiny_trunk()
    begun, may_go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        assert may_go_on.wait(60)

    async def run() -> None:
        driver = EngineThread(TrunkEngine(trunk), "trunk")
        trunk.register_forward_pre_hook(hold)
        for name in ("running", "waiting"):
            driver.open(name, client=name)
        running = asyncio.ensure_future(driver.step("running", RunTokens(hidden_BTH=random_hidden(1, 20))))
        assert await asyncio.to_thread(begun.wait, 60)
        waiting = asyncio.ensure_future(driver.step("waiting", RunTokens(hidden_BTH=random_hidden(1, 1))))
        await asyncio.sleep(0)
        driver.close("waiting")
        may_go_on.set()
        with pytest.raises(LookupError):
            await waiting
        assert (await running) is not None
        await driver.shutdown()

    asyncio.run(run())


def test_a_step_that_nobody_waits_for_any_more_is_not_begun_and_its_session_goes_on() -> None:
    trunk, hidden_BTH = tiny_trunk(), random_hidden(1, 5)
    expected_BTH = reference(trunk, hidden_BTH)
    begun, may_go_on = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        assert may_go_on.wait(60)

    async def run() -> torch.Tensor | None:
        host = HostedTrunk(trunk, name="tiny")
        for name in ("running", "late"):
            await host.open_session(name)
        await host.run_step("late", Forward(hidden_BTH[:, :3]))
        hook = trunk.register_forward_pre_hook(hold)
        running = asyncio.ensure_future(host.run_step("running", Forward(random_hidden(1, 20))))
        assert await asyncio.to_thread(begun.wait, 60)
        late = asyncio.ensure_future(in_time(host.run_step("late", Forward(hidden_BTH[:, 3:])), time.monotonic()))
        await asyncio.sleep(0)
        may_go_on.set()
        with pytest.raises(DeadlineExceededError):
            await late
        await running
        hook.remove()
        output = await host.run_step("late", Forward(hidden_BTH[:, 3:]))
        await host.teardown()
        return output

    output = asyncio.run(run())
    assert output is not None
    torch.testing.assert_close(output, expected_BTH[:, 3:], rtol=0, atol=1e-5)


def test_a_shutdown_cancels_those_who_wait_and_the_thread_begins_again_after() -> None:
    async def run() -> None:
        driver = EngineThread(TrunkEngine(tiny_trunk()), "trunk")
        driver.open("a", client="")
        assert await driver.step("a", RunTokens(hidden_BTH=random_hidden(1, 1))) is not None
        await driver.shutdown()
        await driver.shutdown()
        assert await driver.step("a", RunTokens(hidden_BTH=random_hidden(1, 1))) is not None
        await driver.shutdown()
        assert not [thread for thread in threading.enumerate() if thread.name == "trunk"]

    asyncio.run(run())


def test_steps_of_many_sessions_through_a_host_are_exact() -> None:
    trunk = tiny_trunk()
    sequences = [random_hidden(1 + seed % 2, 6 + seed, seed) for seed in range(NUM_SESSIONS)]
    expected = [reference(trunk, sequence_BTH) for sequence_BTH in sequences]

    async def one(host: HostedTrunk, name: str, sequence_BTH: torch.Tensor) -> torch.Tensor:
        await host.open_session(name, client=name)
        outputs = [await host.run_step(name, Forward(token_B1H)) for token_B1H in sequence_BTH.split(1, dim=1)]
        await host.close_session(name)
        return torch.cat([output for output in outputs if output is not None], dim=1)

    async def all_of_them() -> list[torch.Tensor]:
        host = HostedTrunk(trunk, name="tiny")
        try:
            return await asyncio.gather(*(one(host, str(i), sequence) for i, sequence in enumerate(sequences)))
        finally:
            await host.teardown()

    for output, wanted in zip(asyncio.run(all_of_them()), expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=0, atol=1e-5)
