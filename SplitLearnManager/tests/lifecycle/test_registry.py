"""Models in real processes: loaded, used, replaced under live sessions, killed, cancelled, and nothing left of them."""

import asyncio
import gc
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch

from splitlearn_comm import Crop, Forward, ServerUnavailableError, SessionHost
from splitlearn_core import Trunk, load_part
from splitlearn_core.testing import reference
from splitlearn_manager.errors import BudgetExceededError, ModelLoadError
from splitlearn_manager.lifecycle import LifecycleConfig, ModelManager, ModelSpec, State
from tests.support.models import save_gpt2

torch.set_num_threads(1)
pytestmark = pytest.mark.slow


class Checkpoints(NamedTuple):
    """Two tiny models of the same shape with other weights, and one whose weights are cut off."""

    first: str
    second: str
    truncated: str


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        save_gpt2(directory / name, seed=seed)
    shutil.copytree(directory / "first", directory / "truncated")
    weights = directory / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return Checkpoints(*(str(directory / name) for name in Checkpoints._fields))


def spec(name: str, model: str, **options: int) -> ModelSpec:
    return ModelSpec(name=name, model=model, num_threads=1, **{"kv_bytes": 0, "activation_bytes": 0, **options})


def hidden(num_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, num_tokens, 32, generator=torch.Generator().manual_seed(seed))


def expected(model: str, hidden_BTH: torch.Tensor) -> torch.Tensor:
    trunk = load_part(model, "trunk")
    assert isinstance(trunk, Trunk)
    return reference(trunk.eval(), hidden_BTH)


async def steps(host: SessionHost, session_id: str, hidden_BTH: torch.Tensor) -> torch.Tensor:
    outputs = []
    for at in range(hidden_BTH.shape[1]):
        output = await host.run_step(session_id, Forward(hidden_BTH[:, at : at + 1]))
        assert output is not None
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def assert_close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-5)


def test_sessions_finish_on_the_version_they_began_with_and_new_ones_get_the_new(checkpoints: Checkpoints) -> None:
    hidden_BTH = hidden(8)
    wanted = {model: expected(model, hidden_BTH) for model in checkpoints[:2]}
    assert not torch.allclose(wanted[checkpoints.first], wanted[checkpoints.second], atol=1e-3)

    async def run() -> None:
        async with ModelManager() as manager:
            loaded = await manager.load_model(spec("tiny", checkpoints.first))
            assert loaded.state is State.READY
            assert loaded.info is not None
            assert loaded.info.split_points == (2, 4)
            old = [manager.host_for("tiny") for _ in range(3)]
            begun = []
            for number, lease in enumerate(old):
                await lease.host.open_session(f"old {number}")
                begun.append(await steps(lease.host, f"old {number}", hidden_BTH[:, :4]))
            reloading = asyncio.create_task(manager.reload_model("tiny", spec("tiny", checkpoints.second)))
            while not reloading.done():  # steps go on while the other version loads
                await old[0].host.run_step("old 0", Forward(hidden_BTH[:, 4:5]))
                await old[0].host.run_step("old 0", Crop(1))
                await asyncio.wait([reloading], timeout=0.05)
            assert reloading.result().version == 2
            with manager.host_for("tiny") as new:
                await new.host.open_session("new")
                assert_close(await steps(new.host, "new", hidden_BTH), wanted[checkpoints.second])
                await new.host.close_session("new")
            for number, lease in enumerate(old):
                rest = await steps(lease.host, f"old {number}", hidden_BTH[:, 4:])
                assert_close(torch.cat((begun[number], rest), 1), wanted[checkpoints.first])
                await lease.host.close_session(f"old {number}")
            models = await manager.list_models()
            assert [(model.version, model.state) for model in models] == [(1, State.DRAINING), (2, State.READY)]
            pid = models[0].pid
            assert pid is not None
            events = manager.events()
            for lease in old:
                lease.release()
            assert [(await anext(events)).state for _ in range(2)] == [State.UNLOADING, State.UNLOADED]
            assert not psutil.pid_exists(pid)
            assert [model.version for model in await manager.list_models()] == [2]

    asyncio.run(run())


def test_a_model_whose_process_is_killed_takes_nobody_along_and_is_loaded_again(checkpoints: Checkpoints) -> None:
    hidden_BTH = hidden(3)

    async def run() -> None:
        async with ModelManager(LifecycleConfig(max_restarts=1, restart_delay_s=0)) as manager:
            await asyncio.gather(
                manager.load_model(spec("killed", checkpoints.first)),
                manager.load_model(spec("other", checkpoints.second)),
            )
            killed, other = manager.host_for("killed"), manager.host_for("other")
            for lease in (killed, other):
                await lease.host.open_session("a")
                await lease.host.run_step("a", Forward(hidden_BTH[:, :2]))
            pid = (await manager.get_model("killed")).pid
            assert pid is not None
            events = manager.events()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ServerUnavailableError, match=r"killed version 1 was killed by signal 9 \(SIGKILL\)"):
                await steps(killed.host, "a", hidden(60))
            await other.host.run_step("a", Forward(hidden_BTH[:, 2:]))
            async for event in events:
                if event.state is State.FAILED:
                    assert event.condition.reason.startswith("its process was killed by signal 9 (SIGKILL)")
                if event.state is State.READY:
                    break
            with manager.host_for("killed") as again:
                await again.host.open_session("a")
                assert_close(await steps(again.host, "a", hidden_BTH), expected(checkpoints.first, hidden_BTH))

    asyncio.run(run())


def test_a_budget_refuses_with_numbers_and_an_idle_model_makes_room(checkpoints: Checkpoints) -> None:
    async def run() -> None:
        config = LifecycleConfig(memory_bytes={"cpu": 1_500_000}, may_unload_idle=True)
        async with ModelManager(config) as manager:
            first = await manager.load_model(spec("first", checkpoints.first, kv_bytes=1_000_000))
            assert first.footprint is not None
            trunk = load_part(checkpoints.first, "trunk")
            assert first.footprint.weights_bytes == sum(parameter.nbytes for parameter in trunk.parameters())
            with manager.host_for("first"), pytest.raises(BudgetExceededError) as caught:
                await manager.load_model(spec("second", checkpoints.second, kv_bytes=1_000_000))
            said = str(caught.value)
            assert "no room for second version 1: it needs 1.1 MiB (weights 107.5 KiB, caches 976.6 KiB" in said
            assert "of 1.4 MiB are free beside first version 1 1.1 MiB" in said
            assert first.pid is not None
            second = await manager.load_model("second")
            assert not psutil.pid_exists(first.pid)
            assert second.state is State.READY
            model = await manager.get_model("first")
            assert (model.state, model.condition.reason) == (State.UNLOADED, "it made room for second version 1")

    asyncio.run(run())


class Held(NamedTuple):
    """What this process holds."""

    num_fds: int
    num_threads: int
    num_children: int
    files: list[str]

    @classmethod
    def now(cls, directory: Path) -> "Held":
        me = psutil.Process()
        files = sorted(path.name for path in directory.iterdir())
        return cls(me.num_fds(), threading.active_count(), len(me.children(recursive=True)), files)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_loads", [6, pytest.param(20, marks=pytest.mark.faults)])
def test_after_many_cycles_nothing_is_left(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_loads: int
) -> None:
    """Loads, two at a time; every fifth fails."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = Held.now(tmp_path)
    hidden_BTH = hidden(2)
    wanted = expected(checkpoints.first, hidden_BTH)
    resident: list[int] = []

    async def cycle(manager: ModelManager, number: int) -> None:
        name = f"model-{number % 2}"
        if number % 5 == 4:
            with pytest.raises(ModelLoadError, match="is truncated"):
                await manager.load_model(spec(name, checkpoints.truncated))
            return
        await manager.load_model(spec(name, checkpoints.first))
        with manager.host_for(name) as lease:
            await lease.host.open_session("a")
            assert_close(await steps(lease.host, "a", hidden_BTH), wanted)
        await manager.unload_model(name)

    async def run() -> None:
        async with ModelManager(LifecycleConfig(memory_bytes={"cpu": 10_000_000})) as manager:
            held: list[Held] = []
            for number in range(0, num_loads, 2):
                await asyncio.gather(cycle(manager, number), cycle(manager, number + 1))
                gc.collect()
                held.append(Held.now(tmp_path))
                resident.append(psutil.Process().memory_info().rss)
            assert held[-1] == held[1 if num_loads > 6 else 0], held
            assert held[-1].num_children == before.num_children
            assert held[-1].files == []

    asyncio.run(run())
    assert resident[-1] < resident[min(2, len(resident) // 2)] * 1.02 + (1 << 20), resident
