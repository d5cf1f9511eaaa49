"""`SplitTrainer` and a trunk that says that it stops: saved, left, and come back to, with nothing done twice."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from splitlearn.training import SplitTrainer
from splitlearn_core import LocalTrunk, Trunk
from splitlearn_core.training.port import TrunkTraining, TrunkTrainingSpec
from tests.support.families import tiny_split
from tests.support.split_trainer import trainer_of
from tests.support.training import whole_weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
EPOCHS: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch"}
UPDATES_AN_EPOCH = 4
BEST: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}


class Ending(LocalTrunk):
    """A trunk that says at some updates, once each, that it stops, and is there again when it is asked anew."""

    def __init__(self, trunk: Trunk, ends_at: Iterable[int]) -> None:
        super().__init__(trunk)
        self.ends_at = set(ends_at)
        self.num_started = 0

    def start_training(self, spec: TrunkTrainingSpec) -> TrunkTraining:
        training = super().start_training(spec)
        self.num_started += 1
        update = training.update

        def ending(update_id: int, *rest: Any) -> None:
            update(update_id, *rest)
            if update_id in self.ends_at:
                self.ends_at.remove(update_id)
                training.is_ending = True

        training.update = ending  # type: ignore[method-assign]
        return training


class Seen(TrainerCallback):
    """Notes at which update what happened."""

    def __init__(self) -> None:
        self.updates: list[int] = []
        self.evaluations: list[int] = []
        self.saves: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updates.append(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.evaluations.append(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saves.append(state.global_step)


def trained(directory: Path, ends_at: Iterable[int], **options: Any) -> tuple[SplitTrainer, Seen, Ending]:
    split, seen = tiny_split("llama"), Seen()
    split.client.trunk = trunk = Ending(split.trunk, ends_at)
    trainer = trainer_of(split, directory, [seen], **options)
    trainer.train()
    assert not trunk.ends_at
    return trainer, seen, trunk


def curve(trainer: Trainer) -> list[tuple[int, str, float]]:
    names = ("loss", "grad_norm", "learning_rate", "eval_loss")
    return [
        (entry["step"], name, entry[name]) for entry in trainer.state.log_history for name in names if name in entry
    ]


@pytest.mark.parametrize(
    ("ends_at", "options"),
    [
        ((3,), {}),
        pytest.param((1, 2, 5), {"eval_strategy": "steps", "eval_steps": 1}, marks=pytest.mark.slow),
        pytest.param((6,), {}, marks=pytest.mark.slow),
        pytest.param((3,), {"save_only_model": True}, marks=pytest.mark.slow),
        pytest.param(
            (3, 5), {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}, marks=pytest.mark.slow
        ),
        pytest.param((3,), {"fp16": True}, marks=pytest.mark.slow),
        pytest.param((UPDATES_AN_EPOCH,), {**EPOCHS, **BEST}, marks=pytest.mark.slow),
        pytest.param((3 * UPDATES_AN_EPOCH,), {**EPOCHS, **BEST}, marks=pytest.mark.slow),
        pytest.param(
            (3,),
            {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, **BEST, "learning_rate": 5.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_goes_as_if_the_trunk_had_stayed(tmp_path: Path, ends_at: tuple[int, ...], options: dict[str, Any]) -> None:
    expected, straight, _ = trained(tmp_path / "straight", (), **options)
    got, seen, trunk = trained(tmp_path / "ended", ends_at, **options)
    assert (seen.updates, seen.evaluations, seen.saves) == (straight.updates, straight.evaluations, straight.saves)
    assert curve(got) == curve(expected)
    assert trunk.num_started == 1 + len(set(ends_at) - {expected.state.global_step}) + (
        "load_best_model_at_end" in options
    )
    weights = whole_weights(got.run)
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole_weights(expected.run).items())
    best = [trainer.state.best_global_step for trainer in (expected, got)]
    assert best[0] == best[1]


@pytest.mark.slow
def test_a_trunk_that_is_lost_while_it_is_evaluated_behind_its_last_update_is_come_back_to_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, lost_at = SplitTrainer.evaluate, {3}

    def losing(self: SplitTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step in lost_at:
            lost_at.remove(self.state.global_step)
            raise ConnectionError("gone")
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(SplitTrainer, "evaluate", losing)
    _, seen, trunk = trained(tmp_path, (3,), eval_strategy="steps", eval_steps=3)
    assert seen.updates == [1, 2, 3, 4, 5, 6]
    assert trunk.num_started == 2


@pytest.mark.slow
def test_the_checkpoint_that_was_only_to_go_on_is_removed(tmp_path: Path) -> None:
    trained(tmp_path / "none", (3,))
    assert list((tmp_path / "none").glob("checkpoint-*")) == []
    trained(tmp_path / "some", (3,), save_strategy="steps", save_steps=2)
    assert sorted(path.name for path in (tmp_path / "some").glob("checkpoint-*")) == [
        f"checkpoint-{number}" for number in (2, 3, 4, 6)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"save_strategy": "steps", "save_steps": 6}, {}])
def test_what_was_trained_is_saved_though_the_trunk_went_behind_the_last_update(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    trainer, _, trunk = trained(tmp_path, (6,), **options)
    trainer.save_model(str(tmp_path / "expected"))
    read_state = trainer.run.passes.training.read_state

    def lost() -> Any:
        raise ConnectionError("gone")

    trainer.run.passes.training.read_state = lost  # type: ignore[method-assign]
    trainer.save_model(str(tmp_path / "got"))
    assert trunk.num_started == 2
    assert trainer.run.passes.training.read_state is not read_state
    name = "adapter_model.safetensors"
    assert (tmp_path / "got" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
