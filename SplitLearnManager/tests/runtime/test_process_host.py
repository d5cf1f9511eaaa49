"""A model in a process of its own: the contract of a session host, its death, and loads that fail or are cancelled."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from splitlearn_comm import (
    Action,
    AdapterNotFoundError,
    CacheUse,
    ComputeCall,
    Crop,
    DeadlineExceededError,
    Forward,
    InvalidRequestError,
    KVEntries,
    KVEntry,
    ResourceExhaustedError,
    ServerUnavailableError,
    SessionHost,
    SessionNotFoundError,
    UnsupportedOperationError,
)
from splitlearn_comm.testing import SessionHostContract
from splitlearn_comm.testing.waiting import eventually
from splitlearn_comm.training import (
    ParameterGroup,
    PublishAdapter,
    ReadTraining,
    StartTraining,
    Trained,
    WriteTraining,
)
from splitlearn_comm.worker import DUE_S, TURN, Turn
from splitlearn_core import Trunk, load_part
from splitlearn_core.testing import reference
from splitlearn_core.training.trunk_trainer import TrunkTrainer
from splitlearn_manager.errors import BudgetExceededError, ModelFaultError, ModelLoadError
from splitlearn_manager.runtime.load_reporter import LoadProgress, ModelSize
from splitlearn_manager.runtime.model_process import ModelProcess
from splitlearn_manager.runtime.model_spec import ModelSpec
from splitlearn_manager.runtime.process_host import ProcessHost
from splitlearn_manager.runtime.training_desk import spec_of
from tests.support.models import save_gpt2

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    return ModelSpec(name="tiny", model=str(directory), num_threads=1)


@pytest.fixture(scope="module")
def trunk(spec: ModelSpec) -> Trunk:
    part = load_part(spec.model, "trunk")
    assert isinstance(part, Trunk)
    return part.eval()


@asynccontextmanager
async def loaded(spec: ModelSpec) -> AsyncIterator[ModelProcess]:
    process = ModelProcess(spec)
    await process.load()
    try:
        yield process
    finally:
        await process.end()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def process(spec: ModelSpec, runner: asyncio.Runner) -> Iterator[ModelProcess]:
    """One process for the tests that leave it as it was."""
    context = loaded(spec)
    yield runner.run(context.__aenter__())  # type: ignore[arg-type]
    runner.run(context.__aexit__(None, None, None))  # type: ignore[arg-type]


def hidden(batch: int, num_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, num_tokens, 32, generator=torch.Generator().manual_seed(seed))


class TestProcessHost(SessionHostContract):
    tolerance = 1e-5

    @pytest.fixture(autouse=True)
    def _share(self, process: ModelProcess, runner: asyncio.Runner) -> None:
        self.process, self.runner = process, runner

    def make_host(self) -> SessionHost:
        return ProcessHost(self.process)

    def make_hidden(self, batch: int, num_tokens: int) -> torch.Tensor:
        return hidden(batch, num_tokens, seed=torch.seed() % 1000)

    def _run(self, check: Callable[[SessionHost], Awaitable[None]]) -> None:
        async def run() -> None:
            await check(self.make_host())

        self.runner.run(run())


def test_what_a_client_trains_there_it_computes_with(
    trunk: Trunk, process: ModelProcess, runner: asyncio.Runner
) -> None:
    name, hidden_BTH = "transformer.h.2.attn.c_attn", hidden(2, 5)
    lora = {"r": 2, "target_modules": [name], "fan_in_fan_out": True}
    tensors = {f"{name}.lora_{kind}.default.weight": torch.randn(s) for kind, s in (("A", (2, 32)), ("B", (96, 2)))}
    groups = [ParameterGroup(tuple(tensors), {"lr": 0.1})]
    start = StartTraining(lora, tensors, optimizer="SGD", groups=groups, name="mine")
    expected_BTH = reference(TrunkTrainer(trunk, spec_of(start)).trunk, hidden_BTH)
    assert not torch.allclose(expected_BTH, reference(trunk, hidden_BTH), atol=1e-2)

    async def run() -> None:
        host = ProcessHost(process)
        await host.open_session("training", "alice")
        await host.train("training", start)
        for client in ("bob", ""):
            with pytest.raises(AdapterNotFoundError, match="no adapter 'mine'"):
                await host.compute(ComputeCall(hidden_BTH, adapter="mine", client=client))
            with pytest.raises(AdapterNotFoundError, match="no adapter 'mine'"):
                await host.open_session("refused", client, "mine")
        result = await host.compute(ComputeCall(hidden_BTH, adapter="mine", client="alice"))
        torch.testing.assert_close(result.tensor, expected_BTH, rtol=0, atol=1e-5)
        await host.open_session("computing", "alice", "mine")
        output_BTH = await host.run_step("computing", Forward(hidden_BTH))
        assert output_BTH is not None
        torch.testing.assert_close(output_BTH, expected_BTH, rtol=0, atol=1e-5)
        with pytest.raises(UnsupportedOperationError, match="stays where that is"):
            await host.export_session("computing")
        with pytest.raises(UnsupportedOperationError, match="takes no cache"):
            await host.import_session("computing", KVEntries((), 0))
        read = await host.train("training", ReadTraining())
        assert isinstance(read, Trained)
        assert read.state is not None
        for parameter, tensor in tensors.items():
            assert torch.equal(read.state.tensors[f"parameter {parameter}"], tensor)
        await host.train("training", WriteTraining(read.state))
        await host.train("training", PublishAdapter("kept"))
        await host.close_session("training")
        with pytest.raises(SessionNotFoundError, match="there no more"):
            await host.run_step("computing", Forward(hidden_BTH[:, :1]))
        await host.close_session("computing")
        result = await host.compute(ComputeCall(hidden_BTH, adapter="kept", client="alice"))
        torch.testing.assert_close(result.tensor, expected_BTH, rtol=0, atol=1e-5)

    runner.run(run())


def test_it_tells_what_was_done_in_the_process(process: ModelProcess, runner: asyncio.Runner) -> None:
    async def run() -> None:
        host = ProcessHost(process)
        before = await host.read()
        assert before is not None
        began_s = time.perf_counter()
        await host.open_session("read")
        for _ in range(3):
            turn, asked_s = Turn(), time.perf_counter()
            TURN.set(turn)
            await host.run_step("read", Forward(hidden(1, 2)))
            assert asked_s < turn.began_s < time.perf_counter()
        seconds = time.perf_counter() - began_s
        after = await host.read()
        assert after is not None
        assert after.num_tokens - before.num_tokens == 6
        assert (after.num_sessions - before.num_sessions, after.cached_tokens - before.cached_tokens) == (1, 6)
        assert after.kv_limit_bytes == process.spec.kv_bytes
        assert await host.cache_use() == CacheUse(num_bytes=after.kv_bytes, limit_bytes=after.kv_limit_bytes or 0)
        assert sum(after.queue_s.counts) - sum(before.queue_s.counts) == 3
        # On a clock that both processes share: neither before it was sent nor behind the answer.
        assert 0 < after.queue_s.sum - before.queue_s.sum < seconds
        await host.close_session("read")

    runner.run(run())


def test_it_gives_what_the_trunk_gives_to_the_last_bit(
    process: ModelProcess, runner: asyncio.Runner, trunk: Trunk
) -> None:
    hidden_BTH = hidden(2, 6)

    async def run() -> torch.Tensor | None:
        host = ProcessHost(process)
        assert (await host.compute(ComputeCall(hidden_BTH))).tensor.equal(reference(trunk, hidden_BTH))
        await host.open_session("a")
        output_BTH = await host.run_step("a", Forward(hidden_BTH))
        await host.close_session("a")
        return output_BTH

    output_BTH = runner.run(run())
    assert output_BTH is not None
    assert torch.equal(output_BTH, reference(trunk, hidden_BTH))
    assert process.info.fingerprint == f"{trunk.fingerprint}:2-4"
    assert process.info.name == "tiny"


def test_a_session_goes_on_from_what_was_exported(process: ModelProcess, runner: asyncio.Runner, trunk: Trunk) -> None:
    hidden_BTH = hidden(2, 6)

    async def run() -> torch.Tensor | None:
        host = ProcessHost(process)
        await host.open_session("a")
        await host.run_step("a", Forward(hidden_BTH[:, :5]))
        cache = await host.export_session("a")
        assert cache.position == 5
        await host.open_session("b")
        await host.import_session("b", cache)
        output_BTH = await host.run_step("b", Forward(hidden_BTH[:, 5:]))
        for name in ("a", "b"):
            await host.close_session(name)
        return output_BTH

    output_BTH = runner.run(run())
    assert output_BTH is not None
    torch.testing.assert_close(output_BTH, reference(trunk, hidden_BTH)[:, 5:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "action",
    [Forward(hidden(1, 2)), Forward(hidden(1, 2), torch.ones(1, 5)), Crop(1)],
    ids=["short form", "long form", "crop"],
)
def test_a_step_whose_time_is_over_before_its_turn_comes_is_not_done(
    process: ModelProcess, runner: asyncio.Runner, action: Action
) -> None:
    async def step(host: ProcessHost, due_s: float) -> None:
        DUE_S.set(due_s)  # of the step's own task
        await host.run_step("late", action)

    async def run() -> None:
        host = ProcessHost(process)
        await host.open_session("late")
        await host.run_step("late", Forward(hidden(1, 3)))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            due_s = time.monotonic() + 0.05
            late = asyncio.create_task(step(host, due_s))
            await asyncio.to_thread(eventually, lambda: time.monotonic() > due_s + 0.01)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        with pytest.raises(DeadlineExceededError, match="nothing was done"):
            await late
        assert (await host.export_session("late")).position == 3
        await asyncio.create_task(step(host, time.monotonic() + 60))
        assert (await host.export_session("late")).position != 3
        await host.close_session("late")

    runner.run(run())


@pytest.mark.slow
def test_a_cache_goes_over_whatever_its_size(process: ModelProcess, runner: asyncio.Runner) -> None:
    hidden_BTH = hidden(1, 2)
    past = KVEntries((KVEntry(0, "attention", {"keys": torch.zeros((1 << 28) + 1, dtype=torch.int8)}),), 2)

    async def run() -> None:
        with pytest.raises(InvalidRequestError, match="not those of this trunk"):
            await ProcessHost(process).compute(ComputeCall(hidden_BTH, past_key_values=past))

    runner.run(run())


def test_a_message_of_megabytes_arrives_whole(process: ModelProcess, runner: asyncio.Runner, trunk: Trunk) -> None:
    hidden_BTH = hidden(512, 60)  # 3.9 MB each way

    async def run() -> torch.Tensor:
        both = await asyncio.gather(*(ProcessHost(process).compute(ComputeCall(hidden_BTH)) for _ in range(2)))
        assert torch.equal(both[0].tensor, both[1].tensor)
        return both[0].tensor

    torch.testing.assert_close(runner.run(run()), reference(trunk, hidden_BTH), rtol=0, atol=1e-5)


def test_what_the_host_refuses_is_refused_here(process: ModelProcess, runner: asyncio.Runner) -> None:
    async def run() -> None:
        host = ProcessHost(process)
        await host.open_session("a")
        await host.run_step("a", Forward(hidden(1, 3)))
        with pytest.raises(InvalidRequestError, match="not those of this trunk"):
            await host.import_session("a", KVEntries((KVEntry(9, "attention", {}),), 3))
        output = await host.run_step("a", Forward(hidden(1, 1)))
        assert output is not None
        await host.close_session("a")

    runner.run(run())


def test_a_step_that_fails_is_no_refusal_and_ends_its_session_alone(
    process: ModelProcess, runner: asyncio.Runner
) -> None:
    async def run() -> None:
        host = ProcessHost(process)
        for name in ("failing", "other"):
            await host.open_session(name)
            await host.run_step(name, Forward(hidden(1, 3)))
        with pytest.raises(ModelFaultError, match="PartInputError") as caught:
            await host.run_step("failing", Forward(hidden(1, 3)[:, :, :5]))
        assert "tensor(" not in str(caught.value)
        with pytest.raises(SessionNotFoundError):
            await host.run_step("failing", Crop(1))
        await host.run_step("other", Forward(hidden(1, 1)))
        for name in ("failing", "other"):
            await host.close_session(name)

    runner.run(run())


def test_a_session_whose_opening_was_cancelled_is_not_left_open(
    process: ModelProcess, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, int]] = []
    send = process._channel.send

    def watched(kind, payload=b"", *, call=0, session=0):  # type: ignore[no-untyped-def]
        sent.append((kind.name, session))
        send(kind, payload, call=call, session=session)

    async def run() -> None:
        host = ProcessHost(process)
        opening = asyncio.create_task(host.open_session("a"))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        with pytest.raises(SessionNotFoundError):
            await host.run_step("a", Crop(0))

    monkeypatch.setattr(process._channel, "send", watched)
    runner.run(run())
    assert sent == [("OPEN", 1), ("CLOSE", 1)]


@pytest.mark.slow
def test_the_weights_size_is_known_before_they_are_read_and_what_is_loaded_is_told(
    spec: ModelSpec, trunk: Trunk
) -> None:
    told: list[LoadProgress | ModelSize] = []

    async def admit(size: ModelSize) -> None:
        told.append(size)

    async def run() -> None:
        process = ModelProcess(spec)
        try:
            await process.load(admit, told.append)
        finally:
            await process.end()

    asyncio.run(run())
    phases = [item.phase for item in told if isinstance(item, LoadProgress)]
    assert list(dict.fromkeys(phases)) == [
        "looking for the checkpoint",
        "reading the checkpoint",
        "loading weights",
        "warming up",
    ]
    weights_bytes = sum(parameter.nbytes for parameter in trunk.parameters())
    assert told[1] == ModelSize(device="cpu", weights_bytes=weights_bytes)
    last = [item for item in told if isinstance(item, LoadProgress) and item.phase == "loading weights"][-1]
    assert last.num_done == last.num_total > 10
    assert str(last) == f"loading weights, {last.num_total} of {last.num_total} tensors"


@pytest.mark.slow
def test_its_caches_have_as_much_memory_as_was_set_aside_and_no_more(spec: ModelSpec) -> None:
    async def run() -> None:
        async with loaded(replace(spec, kv_bytes=4 * 2 * 2 * 32 * 4)) as process:  # 4 tokens in keys of 2 layers
            host = ProcessHost(process)
            await host.open_session("a", "somebody")
            await host.run_step("a", Forward(hidden(1, 4)))
            with pytest.raises(ResourceExhaustedError) as caught:
                await host.run_step("a", Forward(hidden(1, 1)))
            assert caught.value.retry_after_s

    asyncio.run(run())


def leftovers(tmp_path: Path) -> tuple[int, int, list[str]]:
    """What a failed load may have left: processes, descriptors, files."""
    me = psutil.Process()
    return len(me.children(recursive=True)), me.num_fds(), sorted(path.name for path in tmp_path.iterdir())


@pytest.fixture
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


@pytest.mark.slow
def test_a_load_that_fails_says_why_and_leaves_nothing(tmp_path: Path, own_tmp: Path) -> None:
    save_gpt2(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    async def run() -> None:
        before = leftovers(own_tmp)
        process = ModelProcess(ModelSpec(name="cut", model=str(tmp_path / "cut"), num_threads=1))
        with pytest.raises(ModelLoadError, match=r"cut version 1 cannot be loaded: .* is truncated: \d+ of") as caught:
            await process.load()
        assert caught.value.kind == "CheckpointError"
        assert leftovers(own_tmp) == before

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("refused", [True, False])
def test_a_load_for_which_there_is_no_room_or_that_is_cancelled_leaves_nothing(
    spec: ModelSpec, own_tmp: Path, refused: bool
) -> None:
    async def run() -> None:
        before = leftovers(own_tmp)
        process = ModelProcess(spec)
        asked = asyncio.Event()

        async def admit(size: ModelSize) -> None:
            asked.set()
            if refused:
                raise BudgetExceededError("no room")
            await asyncio.Event().wait()

        load = asyncio.create_task(process.load(admit))
        await asked.wait()
        assert leftovers(own_tmp)[0] == before[0] + 1
        if not refused:
            load.cancel()
        with pytest.raises(BudgetExceededError if refused else asyncio.CancelledError):
            await load
        assert leftovers(own_tmp) == before

    asyncio.run(run())


@pytest.mark.slow
def test_killed_while_it_works_it_says_so_to_all_that_wait(spec: ModelSpec, own_tmp: Path) -> None:
    async def run() -> None:
        before = leftovers(own_tmp)
        process = ModelProcess(spec)
        await process.load()
        host = ProcessHost(process)
        await host.open_session("a")
        # Stopped first, so that the step is certainly running when the process is killed.
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        steps = [asyncio.create_task(host.run_step("a", Forward(hidden(1, 2)))) for _ in range(2)]
        await asyncio.sleep(0)
        os.kill(process.pid, signal.SIGKILL)
        for step in steps:
            with pytest.raises(ServerUnavailableError, match=r"tiny version 1 was killed by signal 9 \(SIGKILL\)"):
                await step
        assert (await process.wait_ended()).startswith("was killed by signal 9 (SIGKILL), last saying: INFO ")
        with pytest.raises(ServerUnavailableError, match="its sessions are lost"):
            await host.run_step("a", Forward(hidden(1, 2)))
        with pytest.raises(ServerUnavailableError):
            await host.open_session("b")
        await host.close_session("a")
        await process.end()
        assert leftovers(own_tmp) == before

    asyncio.run(run())


PARENT = """
import asyncio, sys
from splitlearn_manager.runtime.model_process import ModelProcess
from splitlearn_manager.runtime.model_spec import ModelSpec

async def run():
    process = ModelProcess(ModelSpec(name="orphan", model=sys.argv[1], num_threads=1))
    async def admit(size):
        if sys.argv[2] == "loading":
            print(process.pid, flush=True)
            await asyncio.Event().wait()
    await process.load(admit)
    print(process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(run())
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["loading", "ready"])
def test_it_ends_when_its_parent_is_killed(spec: ModelSpec, tmp_path: Path, when: str) -> None:
    command = [sys.executable, "-c", PARENT, spec.model, when]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert list(tmp_path.iterdir()) == []
