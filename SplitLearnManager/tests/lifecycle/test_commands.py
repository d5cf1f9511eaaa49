"""Commands to models in every order, many at once: no illegal transition, and every one comes to rest."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from splitlearn_comm import Lease
from splitlearn_manager.errors import (
    BudgetExceededError,
    LoadCancelledError,
    ManagerError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelStateError,
)
from splitlearn_manager.lifecycle import (
    TRANSITIONS,
    EventStream,
    LifecycleConfig,
    ModelEvent,
    ModelManager,
    ModelSpec,
    ModelStatus,
    State,
)
from splitlearn_manager.lifecycle.state import STABLE
from SplitLearnManager.tests.lifecycle.scripted import ScriptedRunner

NAMES = st.sampled_from(["a", "a", "b"])
VERSIONS = st.sampled_from([None, 1, 2])
LIMIT = 100


async def settle() -> None:
    """Let everything run that can run."""
    for _ in range(30):
        await asyncio.sleep(0)


class World:
    """A manager of scripted models, what was asked of it, and what happened."""

    def __init__(self, **config: Any) -> None:
        self.runners: list[ScriptedRunner] = []
        self.weights_bytes = 30
        self.manager = ModelManager(LifecycleConfig(memory_bytes={"cpu": LIMIT}, **config), start=self._start)
        self.events: EventStream = self.manager.events()
        self.seen: list[ModelEvent] = []
        self.commands: list[asyncio.Task[Any]] = []
        self.leases: list[Lease] = []
        self.faults: list[str] = []
        watch = logging.Handler()
        watch.emit = self._watch  # type: ignore[method-assign]
        logging.getLogger("splitlearn_manager.lifecycle.registry").handlers = [watch]

    def _watch(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.faults.append(f"{record.getMessage()}: {record.exc_info[1]!r}")

    def _start(self, spec: ModelSpec) -> ScriptedRunner:
        self.runners.append(ScriptedRunner(spec, self.weights_bytes))
        return self.runners[-1]

    async def ask(self, command: Coroutine[Any, Any, Any], *, is_settled: bool = True) -> asyncio.Task[Any]:
        self.commands.append(asyncio.create_task(command))
        if is_settled:
            await settle()
        return self.commands[-1]

    async def see(self) -> list[ModelEvent]:
        while self.events._waiting.qsize():
            self.seen.append(await anext(self.events))
        return self.seen

    def alive(self) -> list[ScriptedRunner]:
        return [runner for runner in self.runners if runner.is_alive]


def spec(name: str, version: int = 1, kv_bytes: int = 0) -> ModelSpec:
    return ModelSpec(name=name, version=version, kv_bytes=kv_bytes, activation_bytes=0)


class Commands(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = self.runner.run(self._made())
        self.is_settled = True

    async def _made(self) -> World:
        return World(may_unload_idle=True, drain_timeout_s=1e6, max_restarts=1, restart_delay_s=0)

    def _ask(self, command: Coroutine[Any, Any, Any]) -> None:
        self.runner.run(self.world.ask(command, is_settled=self.is_settled))

    @rule(is_settled=st.booleans())
    def hurry(self, is_settled: bool) -> None:
        """From now on what is asked and what happens comes one upon the other, or not any more."""
        self.is_settled = is_settled

    @rule(name=NAMES, version=st.sampled_from([1, 2]), weights=st.sampled_from([10, 40, 101]), wait=st.booleans())
    def load(self, name: str, version: int, weights: int, wait: bool) -> None:
        self.world.weights_bytes = weights
        self._ask(self.world.manager.load_model(spec(name, version), wait=wait))

    @rule(name=NAMES)
    def load_by_name(self, name: str) -> None:
        self._ask(self.world.manager.load_model(name))

    @rule(name=NAMES, version=VERSIONS)
    def unload(self, name: str, version: int | None) -> None:
        self._ask(self.world.manager.unload_model(name, version))

    @rule(name=NAMES)
    def reload(self, name: str) -> None:
        self._ask(self.world.manager.reload_model(name))

    @rule(name=NAMES, version=VERSIONS)
    def cancel(self, name: str, version: int | None) -> None:
        self._ask(self.world.manager.cancel_load(name, version))

    @rule(name=NAMES)
    def wait(self, name: str) -> None:
        self._ask(self.world.manager.wait_ready(name))

    @rule(data=st.data())
    @precondition(lambda self: self.world.commands)
    def give_up(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.world.commands)).cancel()
        self._settle()

    @rule(name=NAMES, version=VERSIONS)
    def lease(self, name: str, version: int | None) -> None:
        try:
            self.world.leases.append(self.world.manager.host_for(name, version))
        except (ModelNotFoundError, ModelNotReadyError):
            return
        assert any(runner.host is self.world.leases[-1].host for runner in self.world.runners)

    @rule(data=st.data())
    @precondition(lambda self: self.world.leases)
    def release(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.world.leases)).release()
        self._settle()

    @rule(data=st.data(), what=st.sampled_from(["finish", "fail", "die", "end", "finish, then die"]))
    @precondition(lambda self: self.world.runners)
    def happen(self, data: st.DataObject, what: str) -> None:
        model = data.draw(st.sampled_from(self.world.runners))
        if "finish" in what:
            model.finish_load()
        if what == "fail":
            model.finish_load("a test said so")
        if what == "end":
            model.may_end.set()
        if "die" in what and model.is_alive and model._outcome.done():
            self._settle()
            model.die()
        self._settle()

    def _settle(self) -> None:
        if self.is_settled:
            self.runner.run(settle())

    @invariant()
    def transitions_are_legal(self) -> None:
        before: dict[tuple[str, int], State] = {}
        for event in self.runner.run(self.world.see()):
            key = (event.name, event.version)
            previous = before.get(key, State.UNLOADED)
            assert event.state is previous or event.state in TRANSITIONS[previous], (previous, event)
            before[key] = event.state

    @invariant()
    def memory_is_booked_for_what_is_there(self) -> None:
        models, booked, num_alive = self.runner.run(self._look())
        assert sum(model.footprint.total_bytes for model in models if model.footprint) == booked <= LIMIT
        for model in models:
            if model.state in (State.UNLOADED, State.FAILED):
                assert model.footprint is None
            if model.state in (State.READY, State.WARMING):
                assert model.footprint is not None
        if self.is_settled:
            assert num_alive <= sum(model.state not in (State.UNLOADED, State.FAILED) for model in models)
            assert sum(model.state is State.READY for model in models) <= num_alive

    async def _look(self) -> tuple[tuple[ModelStatus, ...], int, int]:
        """What there is at one moment."""
        if self.is_settled:
            await settle()
        models = await self.world.manager.list_models()
        return models, self.world.manager._keeper._budget.booked_bytes("cpu"), len(self.world.alive())

    @invariant()
    def refusals_are_of_our_own_tree(self) -> None:
        for command in self.world.commands:
            if command.done() and not command.cancelled() and (error := command.exception()) is not None:
                assert isinstance(error, ManagerError), repr(error)
                assert "\n" not in str(error)

    @invariant()
    def nothing_went_wrong_unseen(self) -> None:
        assert self.world.faults == []

    def teardown(self) -> None:
        with self.runner:
            self.runner.run(self._come_to_rest())
        self.nothing_went_wrong_unseen()

    async def _come_to_rest(self) -> None:
        world = self.world
        for _ in range(4):  # what was finished may be restarted once, and then be finished again
            for lease in world.leases:
                lease.release()
            await settle()
            for model in world.runners:
                model.finish_load()
                model.may_end.set()
            await settle()
        assert all(command.done() for command in world.commands)
        assert all(model.state in STABLE for model in await world.manager.list_models())
        await world.manager.close()
        assert all(model.state in (State.UNLOADED, State.FAILED) for model in await world.manager.list_models())
        assert world.alive() == []
        assert world.manager._keeper._budget.booked_bytes("cpu") == 0


TestCommands = Commands.TestCase
TestCommands.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def in_world(test: Any, **config: Any) -> None:
    async def run() -> None:
        world = World(**config)
        await test(world)
        for model in world.runners:
            model.may_end.set()
        await world.manager.close()
        assert world.alive() == []
        assert world.faults == []

    asyncio.run(run())


async def loaded(world: World, name: str, version: int = 1) -> ScriptedRunner:
    await world.ask(world.manager.load_model(spec(name, version)))
    world.runners[-1].finish_load()
    world.runners[-1].may_end.set()
    await settle()
    assert world.commands[-1].result().state is State.READY
    return world.runners[-1]


def test_commands_that_do_not_fit_are_answered_at_once() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        first = await world.ask(manager.load_model(spec("a")))
        for command, said in (
            (manager.load_model(spec("a")), "cannot load a version 1: it is loading (it was asked to); wait until"),
            (manager.unload_model("a"), "cannot unload a version 1: it is loading"),
            (manager.reload_model("a"), "cannot reload a version 1: it is loading"),
        ):
            with pytest.raises(ModelStateError) as caught:
                await command
            assert said in str(caught.value)
        assert not first.done()
        world.runners[0].finish_load()
        await first
        with pytest.raises(ModelStateError, match=r"cannot load a version 1: it is ready .*reload it"):
            await manager.load_model(spec("a"))
        with pytest.raises(ModelStateError, match="cannot cancel the load of a version 1: it is ready"):
            await manager.cancel_load("a")
        unload = await world.ask(manager.unload_model("a"))
        for again in (manager.unload_model("a"), manager.load_model(spec("a")), manager.reload_model("a")):
            with pytest.raises(ModelStateError, match="it is unloading"):
                await again
        world.runners[0].may_end.set()
        await unload
        with pytest.raises(ModelStateError, match="cannot unload a version 1: it is unloaded"):
            await manager.unload_model("a")

    in_world(test)


def test_what_is_not_known_is_said_with_what_is() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        await loaded(world, "a")
        for command in (manager.load_model("b"), manager.unload_model("b"), manager.get_model("b")):
            with pytest.raises(ModelNotFoundError, match="there is no model 'b'; known are: a"):
                await command
        with pytest.raises(ModelNotFoundError, match="model 'a' has no version 7; known are: 1"):
            manager.host_for("a", 7)

    in_world(test)


def test_new_sessions_go_to_the_new_version_and_the_old_one_ends_with_its_last() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        first = await loaded(world, "a")
        old = [manager.host_for("a") for _ in range(2)]
        reload = await world.ask(manager.reload_model("a"))
        with manager.host_for("a") as lease:
            assert lease.host is first.host, "the new one is not ready yet"
        second = world.runners[1]
        second.finish_load()
        await settle()
        assert reload.result().version == 2
        new = manager.host_for("a")
        assert new.host is second.host
        with pytest.raises(ModelNotReadyError, match=r"takes no sessions: it is draining \(version 2 took its"):
            manager.host_for("a", 1)
        old[0].release()
        old[0].release()
        await settle()
        assert first.is_alive
        old[1].release()
        await settle()
        assert not first.is_alive
        assert second.is_alive
        assert [(model.version, model.num_sessions) for model in await manager.list_models()] == [(2, 1)]

    in_world(test)


def test_a_reload_that_fails_leaves_the_old_version_in_service() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        first = await loaded(world, "a")
        reload = await world.ask(manager.reload_model("a"))
        world.runners[1].finish_load("a test said so")
        with pytest.raises(ModelLoadError, match="a test said so"):
            await reload
        assert manager.host_for("a").host is first.host
        assert [model.state for model in await manager.list_models()] == [State.READY, State.FAILED]
        again = await world.ask(manager.reload_model("a"))
        world.runners[2].finish_load()
        assert (await again).version == 2, "what failed is forgotten"

    in_world(test)


def test_whoever_stops_waiting_cancels_the_load_and_others_are_told() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        load = await world.ask(manager.load_model(spec("a")))
        waiting = await world.ask(manager.wait_ready("a"))
        load.cancel()
        await settle()
        with pytest.raises(LoadCancelledError, match="a version 1 was not loaded: whoever asked for it gave up"):
            await waiting
        assert not world.runners[0].is_alive
        model = await manager.get_model("a")
        assert (model.state, model.footprint) == (State.UNLOADED, None)
        with pytest.raises(ModelNotReadyError, match=r"it is unloaded \(whoever asked for it gave up"):
            await manager.wait_ready("a")

    in_world(test)


def test_the_least_recently_used_idle_model_makes_room_before_the_other_is_loaded() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        await loaded(world, "busy")
        busy = manager.host_for("busy")
        await loaded(world, "used")
        old = await loaded(world, "old")
        manager.host_for("used").release()
        old.may_end.clear()
        load = await world.ask(manager.load_model(spec("more")))
        more = world.runners[-1]
        more.finish_load()
        await settle()
        assert not more.was_admitted, "the memory is not free yet"
        old.may_end.set()
        assert (await load).state is State.READY
        states = {model.name: model.state for model in await manager.list_models()}
        assert states == dict.fromkeys(("busy", "used", "more"), State.READY) | {"old": State.UNLOADED}
        assert (await manager.get_model("old")).condition.reason == "it made room for more version 1"
        busy.release()

    in_world(test, may_unload_idle=True)


def test_a_version_does_not_make_room_for_its_successor() -> None:
    async def test(world: World) -> None:
        world.weights_bytes = 60
        await loaded(world, "a")
        with pytest.raises(BudgetExceededError, match="no room for a version 2: it needs 60 bytes"):
            await world.manager.reload_model("a")
        assert (await world.manager.get_model("a")).state is State.READY

    in_world(test, may_unload_idle=True)


def test_a_version_that_was_unloaded_while_its_successor_was_loading_is_left_alone() -> None:
    async def test(world: World) -> None:
        await loaded(world, "a")
        reload = await world.ask(world.manager.reload_model("a"))
        await world.manager.unload_model("a", 1)
        world.runners[1].finish_load()
        assert (await reload).version == 2
        assert [model.version for model in await world.manager.list_models()] == [2]

    in_world(test)


def test_a_process_that_dies_while_it_drains_is_unloaded_all_the_same() -> None:
    async def test(world: World) -> None:
        model = await loaded(world, "a")
        world.manager.host_for("a")
        unload = await world.ask(world.manager.unload_model("a", drain_timeout_s=1e6))
        model.die()
        assert (await unload)[0].state is State.UNLOADED

    in_world(test)


def test_a_load_that_is_cancelled_as_it_begins_or_as_it_ends_leaves_nothing() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        await manager.load_model(spec("a"), wait=False)
        await manager.cancel_load("a")
        assert world.runners == []
        load = await world.ask(manager.load_model(spec("a")))
        (model,) = world.runners
        model.finish_load()
        model.may_end.set()
        async for event in world.events:
            if event.state is State.WARMING:
                break
        await manager.cancel_load("a")
        with pytest.raises(LoadCancelledError, match="its load was cancelled"):
            await load
        assert not model.is_alive

    in_world(test)


def test_a_model_that_died_is_loaded_again_as_often_as_is_configured() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        (await loaded(world, "a")).die()
        await settle()
        assert (await manager.get_model("a")).condition.reason == "restart 1 of 1: its process was killed by a test"
        assert len(world.runners) == 2
        world.runners[1].finish_load()
        await settle()
        assert manager.host_for("a").host is world.runners[1].host
        world.runners[1].die()
        await settle()
        model = await manager.get_model("a")
        assert (model.state, model.condition.reason) == (State.FAILED, "its process was killed by a test")
        assert len(world.runners) == 2
        with pytest.raises(ModelNotReadyError, match=r"it is failed \(its process was killed by a test"):
            manager.host_for("a")

    in_world(test, max_restarts=1, restart_delay_s=0)


def test_nobody_waits_for_a_restart_that_is_not_wanted_any_more() -> None:
    async def test(world: World) -> None:
        manager = world.manager
        (await loaded(world, "a")).die()
        await settle()
        assert (await manager.unload_model("a"))[0].state is State.UNLOADED
        (await loaded(world, "b")).die()
        await settle()
        assert (await loaded(world, "b")).is_alive
        await settle()
        assert len(world.runners) == 3

    in_world(test, max_restarts=5, restart_delay_s=1e6)


def test_what_failed_and_is_replaced_is_not_restarted() -> None:
    async def test(world: World) -> None:
        await loaded(world, "a")
        (await loaded(world, "a", 2)).die()
        await settle()
        await loaded(world, "a", 3)
        await world.ask(world.manager.reload_model("a"))
        world.runners[-1].finish_load()
        await settle()
        assert [model.version for model in await world.manager.list_models()] == [4]
        await asyncio.sleep(0.05)  # longer than the delay of a restart
        assert len(world.runners) == 4

    in_world(test, max_restarts=1, restart_delay_s=0.02)


def test_sessions_that_do_not_end_are_ended_when_the_time_is_over() -> None:
    async def test(world: World) -> None:
        model = await loaded(world, "a")
        world.manager.host_for("a")
        (status,) = await world.manager.unload_model("a", drain_timeout_s=0.01)
        assert status.condition.reason == "it was asked to; 1 sessions were ended"
        assert not model.is_alive

    in_world(test)


def test_events_tell_of_every_state_and_of_loads_getting_on() -> None:
    async def test(world: World) -> None:
        late = world.manager.events()
        await loaded(world, "a")
        await world.manager.unload_model("a")
        await world.manager.close()
        seen = [event async for event in late]
        assert [event.number for event in seen] == list(range(1, len(seen) + 1))
        states = [event.state.value for event in seen if event.progress is None]
        assert states == ["loading", "ready", "draining", "unloading", "unloaded"]
        told = [str(event.progress) for event in seen if event.progress is not None]
        assert told == ["loading weights, 1 of 2 tensors", "warming up"]
        assert [event async for event in late] == []
        assert [event async for event in world.manager.events()] == []

    in_world(test)


def test_a_reader_of_events_who_never_comes_costs_little() -> None:
    async def test(world: World) -> None:
        late = world.manager.events()
        for _ in range(100):
            await loaded(world, "a")
            await world.manager.unload_model("a")
        assert late._waiting.qsize() == 256
        first = await anext(late)
        assert first.number > 256
        streams = world.manager._events._streams
        num_streams = len(streams)
        del late
        assert len(streams) == num_streams - 1

    in_world(test)


def test_a_manager_that_is_closed_loads_nothing() -> None:
    async def test(world: World) -> None:
        first = await world.ask(world.manager.load_model(spec("a")))
        await world.manager.close()
        with pytest.raises(LoadCancelledError, match="the manager is closing"):
            await first
        with pytest.raises(ModelStateError, match="cannot load b version 1: the manager is closing"):
            await world.manager.load_model(spec("b"))
        await world.manager.close()

    in_world(test)
