"""Compiled layers: the same results, copies of their own, and eager with a reason where it cannot be.

Where it does not matter what a graph becomes, the backend is torch's own `eager`: the graph is made and guarded as
always and run as it is, which takes no compiler and changes no bit.
"""

import copy
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from splitlearn import SplitModelForCausalLM
from splitlearn_core import LocalTrunk, SplitResult, Trunk, compile_part
from splitlearn_core.engine import RunTokens, StepResult, TrunkEngine
from splitlearn_core.parts import compiling
from splitlearn_core.parts.part import CutModel
from splitlearn_core.split.cut_copy import cut_apart
from tests.support.families import POINTS, padded_prompt, tiny_split
from tests.support.models import save_gpt2
from tests.support.programs import run_program
from tests.support.training import fit

LOGGER = "splitlearn_core.parts.compiling"
IDS = padded_prompt(90)["input_ids"]
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> None:
    torch._dynamo.reset()


def parts_of(family: str) -> SplitResult:
    return cut_apart(tiny_split(family).whole, POINTS)


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def log_of(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == LOGGER and r.levelno >= level]


@torch.no_grad()
def through(parts: SplitResult) -> list[torch.Tensor]:
    """Padded and plain forwards, and steps with a cache, of all three parts."""
    mask = padded_prompt(90)["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    bottom, trunk, top = parts
    padded = top(trunk(bottom(IDS, mask, positions), mask, positions), mask, positions)
    outputs = [padded[mask.bool()], top(trunk(bottom(IDS)))]
    caches = [part.new_cache() for part in parts]
    for ids in IDS[:1].split([4, 1, 1, 3], dim=1):
        passing = ids
        for part, cache in zip(parts, caches, strict=True):
            passing = part(passing, past_key_values=cache)
        outputs.append(passing)
    return outputs


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for mine, others in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, others, rtol=0, atol=tolerance * float(others.abs().max().clamp(min=1)))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_parts_as_graphs(family: str, caplog: pytest.LogCaptureFixture) -> None:
    parts = parts_of(family)
    expected = through(parts)
    with caplog.at_level(logging.INFO, LOGGER):
        assert all(compile_part(part, backend="eager") for part in parts)
    assert len(log_of(caplog, logging.INFO)) == 3
    assert_close(through(parts), expected, 1e-6)
    assert not log_of(caplog)


@pytest.mark.slow
def test_generation_of_a_client_as_graphs(caplog: pytest.LogCaptureFixture) -> None:
    split = tiny_split("llama")
    expected = split.client.generate(IDS, max_new_tokens=6)
    for part in (split.client, split.trunk, split.trunk):  # twice is as good as once
        assert compile_part(part, backend="eager")
    assert torch.equal(split.client.generate(IDS, max_new_tokens=6), expected)
    assert not log_of(caplog)


@pytest.mark.slow
def test_training_of_a_client_as_graphs(caplog: pytest.LogCaptureFixture) -> None:
    losses = []
    for is_compiled in (False, True):
        split = tiny_split("gpt2")
        if is_compiled:
            assert compile_part(split.client, backend="eager")
            assert compile_part(split.trunk, backend="eager")
        run = split.client.start_training(lr=1e-3, optimizer="SGD")
        losses.append(fit(split.client, run.optimizer, num_steps=3))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(set(losses[0])) == len(losses[0])
    assert not log_of(caplog)


def reloaded(part: CutModel) -> CutModel:
    made: CutModel = pickle.loads(pickle.dumps(part))
    return made


def with_own_compile(part: CutModel) -> None:
    part.compile(backend="eager")


def with_ours(part: CutModel) -> None:
    assert compile_part(part, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("copied", [copy.deepcopy, reloaded])
@pytest.mark.parametrize("compiled", [with_ours, pytest.param(with_own_compile, marks=pytest.mark.slow)])
def test_a_copy_computes_with_its_own_weights(
    copied: Callable[[CutModel], CutModel], compiled: Callable[[CutModel], object]
) -> None:
    trunk = parts_of("gpt2").trunk
    hidden = torch.randn(1, 5, trunk.hidden_size)
    compiled(trunk)
    before = trunk(hidden)
    other = copied(trunk)
    assert torch.equal(other(hidden), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(other(hidden), before)
    assert torch.equal(trunk(hidden), before)


class Breaking(nn.Module):
    """Goes around a module, and breaks the graph where there are several rows, or always."""

    def __init__(self, inner: nn.Module, *, always: bool) -> None:
        super().__init__()
        self.inner = inner
        self.always = always

    def forward(self, states: torch.Tensor) -> Any:
        if self.always or states.shape[0] > 1:
            torch._dynamo.graph_break()
        return self.inner(states)


class OfAKind(nn.Module):
    """Goes around a module; a graph is for one kind only, and there may be any number of these."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.kind = "warm-up"

    def forward(self, states: torch.Tensor) -> Any:
        return self.inner(states) if self.kind else states


def break_layer(part: CutModel, index: int, *, always: bool) -> None:
    layer: Any = part.get_submodule(f"transformer.h.{index}")
    layer.mlp = Breaking(layer.mlp, always=always)


def test_a_layer_that_is_no_graph_leaves_the_part_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    parts = parts_of("gpt2")
    break_layer(parts.trunk, 3, always=True)
    expected = through(parts)
    assert not compile_part(parts.trunk, backend="eager")
    (said,) = log_of(caplog)
    assert said.startswith("the Trunk of GPT2LMHeadModel is not compiled and runs as it is: ")
    assert "graph_break" in said
    assert not any("forward" in vars(module) for module in parts.trunk.modules())
    for mine, others in zip(through(parts), expected, strict=True):
        assert torch.equal(mine, others)


def test_what_breaks_later_is_said_once_and_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    parts = parts_of("gpt2")
    trunk = parts.trunk
    for index in (2, 3):
        break_layer(trunk, index, always=False)
    hidden = torch.randn(2, 7, trunk.hidden_size)
    with torch.no_grad():
        expected = trunk(hidden)
        assert compile_part(trunk, backend="eager")
        assert not log_of(caplog)
        cache = trunk.new_cache()
        steps = [trunk(chunk, past_key_values=cache) for chunk in hidden.split([5, 1, 1], dim=1)]
    assert_close([torch.cat(steps, 1)], [expected], 1e-5)
    (said,) = log_of(caplog)
    assert "graph_break" in said


@pytest.mark.slow
@torch.no_grad()
def test_one_kind_of_inputs_too_many_is_said_once_and_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "GRAPH_LIMIT", dict.fromkeys(compiling.GRAPH_LIMIT, 8))  # where it can be told
    trunk = parts_of("gpt2").trunk
    layer: Any = trunk.get_submodule("transformer.h.2")
    layer.mlp = OfAKind(layer.mlp)
    hidden = torch.randn(1, 5, trunk.hidden_size)
    expected = trunk(hidden)
    assert compile_part(trunk, backend="eager")
    for number in range(10):
        layer.mlp.kind = f"number {number}"
        assert_close([trunk(hidden)], [expected], 1e-6)
    (said,) = log_of(caplog)
    assert said.startswith("the Trunk of GPT2LMHeadModel is not compiled and runs as it is: ")
    assert "limit" in said


class Counting:
    """A backend that counts its graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_warm_part_makes_no_graph_for_another_length(family: str) -> None:
    trunk, counting = parts_of(family).trunk, Counting()
    assert compile_part(trunk, backend=counting)
    made = counting.num_graphs
    assert made
    cache = trunk.new_cache()
    for num_tokens in (20, 1, 1, 1):
        trunk(torch.randn(1, num_tokens, trunk.hidden_size), past_key_values=cache)
    assert counting.num_graphs == made


def steps_of_sessions(trunk: Trunk, names: str) -> list[torch.Tensor]:
    """A prompt and three tokens of each session, in one engine; those of all sessions are submitted together."""
    engine, came = TrunkEngine(trunk), []
    for name in names:
        engine.open(name)
    for step in range(4):
        for place, name in enumerate(names):
            generator = torch.Generator().manual_seed(10 * place + step)
            num_tokens = 1 if step else 5 + 18 * place
            hidden_1TH = torch.randn(1, num_tokens, trunk.hidden_size, generator=generator)
            engine.submit(name, RunTokens(hidden_BTH=hidden_1TH))
        results: dict[str, StepResult] = {}
        while len(results) < len(names):
            results |= {result.session_id: result for result in engine.turn().results}
        for name in names:
            output = results[name].output_BTH
            assert output is not None, results[name].error
            came.append(output)
    return came


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_engine_finds_its_trunk_warm_and_its_sessions_share_forwards(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    trunk, counting = parts_of(family).trunk, Counting()
    expected = {names: steps_of_sessions(trunk, names) for names in ("a", "abc")}
    assert compile_part(trunk, backend=counting, inference=True)
    made = counting.num_graphs
    assert made
    for names, outputs in expected.items():
        assert_close(steps_of_sessions(trunk, names), outputs, 1e-5)
    assert counting.num_graphs == made
    assert not log_of(caplog)


def a_little_wrong(graph: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return tuple(
            out * (1 + 1e-4) if isinstance(out, torch.Tensor) and out.is_floating_point() else out
            for out in graph(*args)
        )

    return run


def test_results_that_differ_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    parts = parts_of("gpt2")
    expected = through(parts)
    assert not compile_part(parts.trunk, backend=a_little_wrong)
    (said,) = log_of(caplog)
    assert "give other results: they differ by" in said
    for mine, others in zip(through(parts), expected, strict=True):
        assert torch.equal(mine, others)


WITHOUT_COMPILER = """
import logging, torch
logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
from splitlearn_core import compile_part, load_split_model
parts = load_split_model("builtin")
ids = torch.arange(5).unsqueeze(0)
before = parts.top(parts.trunk(parts.bottom(ids)))
assert not compile_part(parts.trunk)
assert torch.equal(parts.top(parts.trunk(parts.bottom(ids))), before)
"""


@pytest.mark.slow
def test_without_a_compiler_the_warning_names_it(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = run_program(["-c", WITHOUT_COMPILER], environment)
    assert ended.returncode == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith(LOGGER)]
    assert len(said) == 1, ended.stderr
    assert "the Trunk of GPT2LMHeadModel is not compiled and runs as it is: " in said[0]
    assert "InvalidCxxCompiler" in said[0]
    assert "no-such-compiler" in said[0]


@needs_compiler
@pytest.mark.slow
def test_a_compiled_part_gives_what_it_gave(caplog: pytest.LogCaptureFixture) -> None:
    parts = parts_of("llama")
    expected = through(parts)
    assert compile_part(parts.trunk)  # one of the three: a compiler takes seconds a layer
    assert_close(through(parts), expected, 1e-5)
    assert not log_of(caplog)


@needs_compiler
@pytest.mark.slow
def test_a_model_loaded_compiled_generates_and_trains_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_gpt2(tmp_path, num_layers=3)
    with caplog.at_level(logging.INFO, LOGGER):
        plain, compiled = (
            SplitModelForCausalLM.from_pretrained(str(tmp_path), compile=is_compiled) for is_compiled in (False, True)
        )
    assert [line.split(" is ")[0] for line in log_of(caplog, logging.INFO)] == [
        "the SplitModel of GPT2LMHeadModel",
        "the Trunk of GPT2LMHeadModel",
    ]
    prompt = IDS[:1]
    expected = plain.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(
        compiled.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0), expected
    )
    for model in (plain, compiled):
        assert isinstance(model.trunk, LocalTrunk)
        without_dropout(model)
        without_dropout(model.trunk.trunk)
    losses = [fit(m, torch.optim.SGD(m.parameters(), lr=0.1), num_steps=2) for m in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert not log_of(caplog)
