"""The script that makes the builtin model: the split of its corpus, its growth, its resuming, its judgement."""

import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from builtin_model.blocks import BlockStream  # noqa: E402
from builtin_model.corpus import is_held_out, is_test, read_corpus  # noqa: E402
from builtin_model.evaluation import bits_of_tokens  # noqa: E402
from builtin_model.files import TrainingDirectory  # noqa: E402
from builtin_model.model import build_model, grown  # noqa: E402
from builtin_model.optimizer import orthogonalized  # noqa: E402
from builtin_model.plan import TrainingPlan  # noqa: E402
from builtin_model.prompts import judge  # noqa: E402
from builtin_model.training import Trainer  # noqa: E402

TINY = TrainingPlan(
    steps=6,
    warmup_steps=2,
    decay_steps=2,
    long_steps=2,
    short_block=8,
    long_block=16,
    batch_tokens=32,
    shards=2,
    width=32,
    vocab_size=50,
    num_layers=2,
    shallow_layers=1,
    shallow_steps=3,
)
DOCUMENTS = [[0, *(torch.arange(length) % 49 + 1).tolist()] for length in (40, 70, 55, 90)]


def plant_library(root: Path) -> Path:
    """Sixty modules, a copy of each under another name, a test and a generated table."""
    for number in range(60):
        text = "".join(f"value_{number}_{line} = {number * line}\n" for line in range(20))
        for name in (f"module{number}.py", f"copy/of{number}.py"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    for name in ("test/test_a.py", "encodings/cp1.py", "site-packages/x.py", "_sysconfigdata_linux.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    return root


def test_no_training_file_is_held_out_or_a_near_copy(tmp_path: Path) -> None:
    corpus = read_corpus(with_tests=True, root=plant_library(tmp_path))
    held_out = {file.text for file in corpus.held_out}
    assert 0 < len(corpus.held_out) < 20
    assert len(corpus.near_copies) > 0
    assert held_out.isdisjoint(file.text for file in corpus.training)


def test_split_leaves_out_what_is_foreign_generated_or_of_one_machine(tmp_path: Path) -> None:
    corpus = read_corpus(with_tests=True, root=plant_library(tmp_path))
    names = {file.name for file in corpus.training + corpus.held_out}
    assert "test/test_a.py" in names
    assert not any(name.startswith(("encodings", "site-packages", "_sysconfigdata")) for name in names)


def test_tests_are_never_held_out() -> None:
    names = [f"test/test_{number}.py" for number in range(200)]
    assert all(map(is_test, names))
    assert not any(map(is_held_out, names))


def test_stream_continues_where_it_stood() -> None:
    stream = BlockStream(DOCUMENTS, seed=1)
    for _ in range(5):
        stream.next_batch(4, 8)
    resumed = BlockStream(DOCUMENTS, seed=1)
    resumed.load_state_dict(stream.state_dict())
    for _ in range(10):
        assert torch.equal(stream.next_batch(4, 8), resumed.next_batch(4, 8))


def test_stream_gives_each_block_once_an_epoch() -> None:
    stream = BlockStream([list(range(1000))], seed=1)
    starts = [int(row[0]) for _ in range(30) for row in stream.next_batch(4, 8)]
    assert len(set(starts)) == len(starts)
    assert stream.state_dict()["epoch"] == 1


def test_growing_keeps_the_function_and_can_learn() -> None:
    torch.manual_seed(0)
    model = build_model(num_layers=2, width=32, vocab_size=50, context=16)
    deep = grown(model, num_layers=4)
    tokens_BT = torch.randint(0, 50, (2, 16))
    torch.testing.assert_close(deep(tokens_BT).logits, model(tokens_BT).logits)
    deep(tokens_BT, labels=tokens_BT).loss.backward()
    assert deep.transformer.h[1].mlp.c_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 16, 48), (3, 64, 16)])
def test_orthogonalized_has_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [TINY.rate_at(step) for step in range(TINY.steps + 1)]
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]


def weights_after(plan: TrainingPlan, directory: Path) -> dict[str, torch.Tensor]:
    directory.mkdir(exist_ok=True)
    Trainer(DOCUMENTS, [], plan, TrainingDirectory(directory)).run()
    return torch.load(directory / "checkpoint.pt", weights_only=True)["model"]


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights_after(TINY, tmp_path / "whole")
    monkeypatch.setattr(Trainer, "_log_step", lambda self, *_: self._stop() if self._step == stop else None)
    weights_after(TINY, tmp_path / "parts")
    monkeypatch.undo()
    resumed = weights_after(TINY, tmp_path / "parts")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_another_model_cannot_resume(tmp_path: Path) -> None:
    weights_after(TINY, tmp_path)
    wider = TrainingPlan(**{**vars(TINY), "width": 64})
    with pytest.raises(SystemExit, match="width=32"):
        weights_after(wider, tmp_path)


@pytest.mark.parametrize("stride", [1, 4, 7])
def test_windows_count_every_token_once(stride: int) -> None:
    class Uniform(torch.nn.Module):
        def forward(self, ids_1T: torch.Tensor) -> object:
            return type("Output", (), {"logits": torch.zeros(*ids_1T.shape, 4)})

    for length in (2, 7, 8, 9, 16, 21):
        assert bits_of_tokens(Uniform(), [1] * length, context=8, stride=stride) == pytest.approx(2 * (length - 1))


@pytest.mark.parametrize(
    ("prompt", "continuation", "parses", "as_cut"),
    [
        ("def f(x):\n", "    return x\n    unfinished(", True, True),
        ("def f(x):\n", "    if x:\n", True, False),
        ("x = [", "1,\n    2,\n", True, False),
        ("def f(x):\n", '    """Text that\ngoes on\n', True, False),
        ("def f(x):\n", "return x\n", False, False),
        ("x = f(", "a b\n", False, False),
        ("x = [", "1)\n", False, False),
        ("x = ", "1 +\ny = 2\nif x:\n", False, False),
        ("x = ", "one line that never ends", False, False),
        ("x = 1\n", "\n\n", False, False),
    ],
)
def test_judgement(prompt: str, continuation: str, parses: bool, as_cut: bool) -> None:
    judged = judge(prompt, continuation)
    assert (judged.parses, judged.parses_as_cut) == (parses, as_cut)
