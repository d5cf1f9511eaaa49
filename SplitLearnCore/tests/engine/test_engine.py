"""Sessions that share forwards get what each would get alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from splitlearn_core import LocalTrunk, Trunk, TrunkSession
from splitlearn_core.cache.entries import import_cache
from splitlearn_core.engine import (
    Action,
    Batching,
    CropTokens,
    EngineLimits,
    Joining,
    ReorderRows,
    RunTokens,
    StartRecording,
    StepResult,
    TrunkEngine,
)
from splitlearn_core.engine.engine import Turn
from splitlearn_core.engine.steps import BatchKind
from splitlearn_core.parts.classes import architecture_of
from splitlearn_core.split.cut_copy import SplitResult, cut_apart
from splitlearn_core.split.points import SplitPoints
from splitlearn_core.split.tiny import tiny_config, tiny_model
from tests.support.families import FAMILIES, tiny_split

TOLERANCE = 1e-4
LIMITS = EngineLimits(max_tokens=16, max_join_tokens=4, wait_share=0)


def run(engine: TrunkEngine) -> dict[int, StepResult]:
    """Take turns until nothing waits; return what ended, by ticket."""
    results: dict[int, StepResult] = {}
    turn = engine.turn()
    while turn != Turn():
        results.update({result.ticket: result for result in turn.results})
        turn = engine.turn()
    return results


def outputs(engine: TrunkEngine, tickets: list[int]) -> list[torch.Tensor]:
    results = run(engine)
    found = [results[ticket] for ticket in tickets]
    assert [result.error for result in found] == [None] * len(found)
    return [result.output_BTH for result in found if result.output_BTH is not None]


def alone(session: TrunkSession, action: Action) -> torch.Tensor | None:
    match action:
        case RunTokens():
            return session.step(action.hidden_BTH, action.attention_mask, action.position_ids)
        case ReorderRows(indices=indices):
            session.reorder(torch.tensor(indices))
        case CropTokens(num_tokens=num_tokens):
            session.crop(num_tokens)
        case StartRecording():
            session.start_recording()
    return None


@dataclass
class Player:
    """A client that decodes greedily: its own Bottom and Top, and a plan of what else it does.

    `play` yields what it asks of the trunk, and is sent the answer.
    """

    parts: SplitResult
    prompt_BT: torch.Tensor
    num_steps: int = 6
    starts_at: int = 0
    num_padding: int = 0
    crop_at: int | None = None
    reorder_at: int | None = None
    tokens: list[list[int]] = field(default_factory=list)
    hidden: list[torch.Tensor] = field(default_factory=list)

    def play(self) -> Iterator[Action]:
        self._caches: list[Any] = [None, None]
        ids_BT, mask_BK = self.prompt_BT, torch.ones_like(self.prompt_BT)
        mask_BK[0, : self.num_padding] = 0
        if self.crop_at is not None:
            yield StartRecording()
            self._caches = [self.parts.bottom.new_cache(), self.parts.top.new_cache()]
            for cache in self._caches:
                cache.activate_past_recording()
        for step in range(self.num_steps):
            if step == self.crop_at:
                # The last token is taken back and run again.
                yield CropTokens(num_tokens=1)
                for cache in self._caches:
                    cache.crop(-1)
                ids_BT, mask_BK = self._last_ids, mask_BK[:, :-1]
            if step == self.reorder_at:
                yield ReorderRows(indices=(1, 0))
                for cache in self._caches:
                    cache.reorder_cache(torch.tensor([1, 0]))
                ids_BT, mask_BK = ids_BT.flip(0), mask_BK.flip(0)
            inputs = self._inputs(ids_BT, mask_BK)
            hidden_BTH, self._caches[0] = self.parts.bottom(
                ids_BT, past_key_values=self._caches[0], use_cache=True, **inputs
            )
            yield RunTokens(hidden_BTH=hidden_BTH, **inputs)
            self.hidden.append(self.answer_BTH[self._is_token(mask_BK, ids_BT)])
            logits_BTV, self._caches[1] = self.parts.top(
                self.answer_BTH, past_key_values=self._caches[1], use_cache=True, **inputs
            )
            self._last_ids, ids_BT = ids_BT, logits_BTV[:, -1:].argmax(-1)
            mask_BK = torch.cat([mask_BK, torch.ones_like(ids_BT)], dim=1)
            self.tokens.append(ids_BT.flatten().tolist())

    def _inputs(self, ids_BT: torch.Tensor, mask_BK: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.num_padding:
            return {}
        positions = (mask_BK.cumsum(-1) - 1).clamp(min=0)
        return {"attention_mask": mask_BK, "position_ids": positions[:, -ids_BT.shape[1] :]}

    @staticmethod
    def _is_token(mask_BK: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
        return mask_BK[:, -ids_BT.shape[1] :].bool()


def players(parts: SplitResult, vocab_size: int) -> dict[str, Player]:
    generator = torch.Generator().manual_seed(3)

    def prompt(num_rows: int, num_tokens: int) -> torch.Tensor:
        return torch.randint(4, vocab_size, (num_rows, num_tokens), generator=generator)

    return {
        "plain": Player(parts, prompt(1, 13), num_steps=9),
        "padded, two rows": Player(parts, prompt(2, 9), num_padding=4, reorder_at=4),
        "late": Player(parts, prompt(1, 3), starts_at=2, num_steps=4),
        "in chunks": Player(parts, prompt(1, 41), starts_at=1),
        "cropped": Player(parts, prompt(1, 6), crop_at=3),
    }


def play_alone(trunk: Trunk, everyone: dict[str, Player]) -> None:
    for player in everyone.values():
        session = LocalTrunk(trunk).open_session()
        for action in player.play():
            answer = alone(session, action)
            if answer is not None:
                player.answer_BTH = answer


def play_together(engine: TrunkEngine, everyone: dict[str, Player]) -> list[int]:
    """Play all in step; return the numbers of sessions in the joined forwards."""
    games = {name: player.play() for name, player in everyone.items()}
    joined, now = [], 0
    while games:
        asked = {}
        for name in [name for name in games if everyone[name].starts_at <= now]:
            if name not in engine:
                engine.open(name, client=name)
            action = next(games[name], None)
            if action is None:
                del games[name]
                engine.close(name)
            else:
                asked[engine.submit(name, action)] = name
        while (turn := engine.turn()) != Turn():
            if turn.batch is not None and turn.batch.kind is not BatchKind.OTHER:
                joined.append(len(turn.batch.chunks))
            for result in turn.results:
                assert result.error is None, result.error
                if result.output_BTH is not None:
                    everyone[asked[result.ticket]].answer_BTH = result.output_BTH
        now += 1
    return joined


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_sessions_together_get_what_each_gets_alone(family: str) -> None:
    config = tiny_config(family)
    parts = cut_apart(tiny_model(architecture_of(config), config), SplitPoints(1, 5))
    reference, shared = players(parts, config.vocab_size), players(parts, config.vocab_size)
    play_alone(parts.trunk, reference)
    engine = TrunkEngine(parts.trunk, LIMITS)
    joined = play_together(engine, shared)
    assert max(joined) >= 3
    for name, player in shared.items():
        assert player.tokens == reference[name].tokens, name
        for ours, theirs in zip(player.hidden, reference[name].hidden, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    assert engine.cached_tokens() == engine.kv_bytes() == 0


class TestOneByOne:
    """An architecture that cannot share forwards is served all the same."""

    @torch.inference_mode()
    def test_every_step_runs_alone_and_prompts_come_whole(self) -> None:
        parts = cut_apart(tiny_model(architecture_of(tiny_config("gpt2")), tiny_config("gpt2")), SplitPoints(1, 5))
        reference, shared = players(parts, 100), players(parts, 100)
        play_alone(parts.trunk, reference)
        batching = Batching(joining=Joining.ALONE, alone_because="tested", whole_because="tested")
        engine = TrunkEngine(parts.trunk, LIMITS, batching=batching)
        joined = play_together(engine, shared)
        assert max(joined) == 1
        for name, player in shared.items():
            assert player.tokens == reference[name].tokens
            assert all(map(torch.equal, player.hidden, reference[name].hidden))


@pytest.fixture
def trunk() -> Trunk:
    return tiny_split("gpt2").trunk


@pytest.fixture
def engine(trunk: Trunk) -> TrunkEngine:
    return TrunkEngine(trunk, LIMITS)


def tokens(trunk: Trunk, num_tokens: int, num_rows: int = 1, seed: int = 0) -> RunTokens:
    generator = torch.Generator().manual_seed(seed)
    return RunTokens(hidden_BTH=torch.randn(num_rows, num_tokens, trunk.hidden_size, generator=generator))


def opened(engine: TrunkEngine, trunk: Trunk, lengths: dict[str, int]) -> None:
    for name, length in lengths.items():
        engine.open(name, client=name)
        engine.submit(name, tokens(trunk, length))
    run(engine)


class TestFailures:
    def test_one_bad_step_fails_alone_and_ends_its_session(
        self, trunk: Trunk, engine: TrunkEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        opened(engine, trunk, {"a": 5, "bad": 4, "c": 3})
        good = [engine.submit(name, tokens(trunk, 1, seed=1)) for name in "ac"]
        bad = engine.submit("bad", RunTokens(hidden_BTH=torch.randn(1, 1, 7)))
        behind = engine.submit("bad", tokens(trunk, 1))
        results = run(engine)
        assert all(results[ticket].error is None for ticket in good)
        assert "expected hidden states" in str(results[bad].error)
        assert "open a new session" in str(results[behind].error)
        assert "bad" not in engine
        assert (engine.position("a"), engine.position("c")) == (6, 4)
        assert "3 steps ran alone: their joined forward raised " in caplog.text

    def test_after_a_forward_that_failed_the_others_go_on_exactly(
        self, trunk: Trunk, engine: TrunkEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened(engine, trunk, {"a": 5, "b": 4, "c": 3})
        layer = trunk.transformer.h[3]
        forward, fails_at = layer.forward, {3: "together", 1: "b alone"}
        calls: list[int] = []

        def sometimes(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append(len(hidden_states))
            if len(hidden_states) == 3 or len(calls) == 3:
                raise RuntimeError(fails_at[len(hidden_states)])
            return forward(hidden_states, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", sometimes)
            tickets = {name: engine.submit(name, tokens(trunk, 1, seed=1)) for name in "abc"}
            results = run(engine)
        assert calls == [3, 1, 1, 1]
        assert str(results[tickets["b"]].error) == "b alone"
        twin = TrunkEngine(trunk, LIMITS)
        opened(twin, trunk, {"a": 5, "c": 3})
        for name in "ac":
            [expected] = outputs(twin, [twin.submit(name, tokens(trunk, 1, seed=1))])
            got = results[tickets[name]].output_BTH
            assert got is not None
            assert torch.equal(got, expected)
        for name in "ac":
            [expected] = outputs(twin, [twin.submit(name, tokens(trunk, 1, seed=2))])
            [again] = outputs(engine, [engine.submit(name, tokens(trunk, 1, seed=2))])
            assert torch.equal(again, expected)

    @pytest.mark.parametrize("mask", [torch.ones(1, 3), torch.tensor([[0, 1, 1, 1, 1, 1]])])
    def test_a_step_that_cannot_be_put_together_runs_alone(
        self, trunk: Trunk, engine: TrunkEngine, mask: torch.Tensor
    ) -> None:
        """A mask of another length, or padding without positions: what they mean is the architecture's to say."""
        opened(engine, trunk, {"a": 5, "b": 5, "odd": 5})
        step = tokens(trunk, 1, seed=1)
        good = [engine.submit(name, step) for name in "ab"]
        engine.submit("odd", RunTokens(hidden_BTH=step.hidden_BTH, attention_mask=mask))
        results = run(engine)
        assert all(results[ticket].error is None for ticket in good)

    def test_a_first_step_runs_alone_among_others(self, trunk: Trunk, engine: TrunkEngine) -> None:
        opened(engine, trunk, {"a": 5, "b": 4})
        engine.open("new")
        tickets = [engine.submit(name, tokens(trunk, 1, seed=1)) for name in ("a", "new", "b")]
        _, first, _ = outputs(engine, tickets)
        torch.testing.assert_close(first, trunk(tokens(trunk, 1, seed=1).hidden_BTH), rtol=TOLERANCE, atol=TOLERANCE)

    def test_a_closed_session_gives_its_tickets_back(self, trunk: Trunk, engine: TrunkEngine) -> None:
        engine.open("a")
        tickets = tuple(engine.submit("a", tokens(trunk, 2)) for _ in range(2))
        assert engine.close("a") == tickets
        assert engine.close("a") == ()
        assert engine.turn() == Turn()


class TestSessions:
    @torch.inference_mode()
    def test_a_session_moves_to_another_engine(self, trunk: Trunk, engine: TrunkEngine) -> None:
        opened(engine, trunk, {"a": 5})
        states, position = engine.export("a")
        [stayed] = outputs(engine, [engine.submit("a", tokens(trunk, 1, seed=1))])
        cache = trunk.new_cache()
        import_cache(cache, states, position)
        other = TrunkEngine(trunk, LIMITS)
        other.open("moved", cache=cache)
        opened(other, trunk, {"else": 3})
        moved, _ = outputs(other, [other.submit(name, tokens(trunk, 1, seed=1)) for name in ("moved", "else")])
        torch.testing.assert_close(moved, stayed, rtol=TOLERANCE, atol=TOLERANCE)

    def test_what_was_exported_does_not_change_any_more(self, trunk: Trunk, engine: TrunkEngine) -> None:
        opened(engine, trunk, {"a": 5})
        states, _ = engine.export("a")
        before = [tensor.clone() for state in states for tensor in state.tensors.values()]
        engine.submit("a", CropTokens(num_tokens=3))
        engine.submit("a", tokens(trunk, 2, seed=4))
        run(engine)
        after = [tensor for state in states for tensor in state.tensors.values()]
        assert all(map(torch.equal, before, after))

    def test_tokens_and_bytes_are_counted(self, trunk: Trunk, engine: TrunkEngine) -> None:
        opened(engine, trunk, {"a": 5, "b": 70})
        assert (engine.cached_tokens("a"), engine.cached_tokens("b"), engine.cached_tokens()) == (5, 70, 75)
        # Keys and values of two layers, of float32, in rooms for 64 and 128 tokens.
        assert engine.kv_bytes("a") == 2 * 2 * 64 * trunk.hidden_size * 4
        assert engine.kv_bytes("b") == 2 * engine.kv_bytes("a")
        assert engine.kv_bytes() == 3 * engine.kv_bytes("a")
        engine.close("b")
        assert engine.kv_bytes() == engine.kv_bytes("a")

    def test_hidden_states_come_back_in_one_piece(self, trunk: Trunk, engine: TrunkEngine) -> None:
        engine.open("a")
        [output] = outputs(engine, [engine.submit("a", tokens(trunk, 41))])
        assert output.shape == (1, 41, trunk.hidden_size)
        expected = trunk(tokens(trunk, 41).hidden_BTH)
        torch.testing.assert_close(output, expected, rtol=TOLERANCE, atol=TOLERANCE)

    def test_steps_wait_for_sessions_that_come_back_at_once(self, trunk: Trunk) -> None:
        times = iter(index * 0.001 for index in range(10_000))
        engine = TrunkEngine(trunk, EngineLimits(wait_share=100.0), clock=lambda: next(times))
        opened(engine, trunk, {"a": 3, "b": 3})
        for _ in range(3):
            for name in "ab":
                engine.submit(name, tokens(trunk, 1))
            run_waiting(engine)
        engine.submit("a", tokens(trunk, 1))
        turn = engine.turn()
        assert turn.batch is None
        assert turn.wait_until_s is not None
        engine.submit("b", tokens(trunk, 1))
        turn = engine.turn()
        assert turn.batch is not None
        assert len(turn.batch.chunks) == 2


def run_waiting(engine: TrunkEngine) -> None:
    """Take turns until nothing waits, on a clock that goes on by being read."""
    for _ in range(1000):
        if engine.turn() == Turn():
            return
    pytest.fail(f"it waits for ever: {engine!r}")


def test_attention_of_another_kind_is_padded(trunk: Trunk) -> None:
    trunk.config._attn_implementation = "flex_attention"
    engine = TrunkEngine(trunk)
    assert engine.batching.joining is Joining.PADDED


def test_it_prints_its_state_in_one_line(trunk: Trunk, engine: TrunkEngine) -> None:
    opened(engine, trunk, {"a": 5})
    assert repr(engine).startswith("TrunkEngine(1 sessions, 5 tokens, Scheduler(running nothing, waiting 0 steps")


def test_a_step_that_was_asked_for_while_a_chunk_ran_goes_before_the_next_chunk() -> None:
    now_s = [0.0]
    trunk = tiny_split("llama").trunk
    trunk.register_forward_hook(lambda *_: now_s.__setitem__(0, now_s[0] + 1.0))
    engine = TrunkEngine(trunk, LIMITS, clock=lambda: now_s[0])
    for name in ("prompt", "short"):
        engine.open(name, client=name)
    hidden_BTH = torch.randn(1, 64, trunk.hidden_size)
    engine.submit("short", RunTokens(hidden_BTH=hidden_BTH[:, :1]))
    run(engine)
    engine.submit("prompt", RunTokens(hidden_BTH=hidden_BTH))
    began_s = now_s[0]
    assert (turn := engine.turn()).batch is not None
    assert turn.batch.kind is BatchKind.PROMPT
    now_s[0] += 0.25  # a thread takes it in a moment after the chunk
    engine.submit("short", RunTokens(hidden_BTH=hidden_BTH[:, :1]), asked_s=began_s + 0.5)
    assert (turn := engine.turn()).batch is not None
    assert turn.batch.kind is BatchKind.JOINED
