"""`SplitTrainer` trains as `Trainer` trains the whole model, and goes on from its checkpoints bit for bit."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from splitlearn.training import SplitTrainer, SplitTrainingArguments
from splitlearn_core import LocalTrunk, TrainingError, Trunk
from splitlearn_core.training.port import TrunkTraining, TrunkTrainingSpec
from splitlearn_core.training.trainer import MAX_LOSSES, Patience, last_checkpoint
from tests.support.families import tiny_split
from tests.support.split_trainer import Rows, lora, options, trainer_of
from tests.support.training import assert_same, whole_weights, without_prefix

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def assert_same_weights(one: SplitTrainer, other: SplitTrainer) -> None:
    expected, got = whole_weights(one.run), whole_weights(other.run)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def told(trainer: Trainer) -> list[tuple[float, float, float]]:
    return [(e["loss"], e["grad_norm"], e["learning_rate"]) for e in trainer.state.log_history if "loss" in e]


def test_it_trains_as_the_trainer_of_the_whole_model(tmp_path: Path) -> None:
    split = tiny_split("llama")
    torch.manual_seed(5)
    whole = get_peft_model(copy.deepcopy(split.whole), lora())
    plain = Trainer(whole.base_model.model, TrainingArguments(**options(tmp_path / "whole")), train_dataset=Rows())
    plain.train()
    trainer = trainer_of(split, tmp_path / "split")
    trainer.train()
    assert told(trainer) == told(plain)
    assert len(told(plain)) == 6
    assert_same(trainer.run, whole, without_prefix)


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "gpt2"))]
)
def test_all_weights_decay_as_with_the_trainer_of_the_whole_model(tmp_path: Path, family: str) -> None:
    split = tiny_split(family)
    whole = copy.deepcopy(split.whole)
    saving = {"save_strategy": "steps", "save_steps": 3}
    plain = Trainer(whole, TrainingArguments(**options(tmp_path / "whole")), train_dataset=Rows())
    plain.train()
    torch.manual_seed(5)
    trainer = SplitTrainer(
        split.client, SplitTrainingArguments(**options(tmp_path / "split", **saving)), train_dataset=Rows()
    )
    assert [group["weight_decay"] for group in trainer.run.optimizer.param_groups] == [0.1, 0.0]
    trainer.train()
    assert told(trainer) == told(plain)
    assert_same(trainer.run, whole)
    torch.manual_seed(5)
    again = SplitTrainer(
        tiny_split(family).client, SplitTrainingArguments(**options(tmp_path / "split", **saving)), train_dataset=Rows()
    )
    again.train(resume_from_checkpoint=str(tmp_path / "split" / "checkpoint-3"))
    assert_same(again.run, whole)


@pytest.mark.slow
def test_curves_go_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    trainer = trainer_of(tiny_split("llama"), tmp_path, report_to="tensorboard")
    trainer.train()
    written = EventAccumulator(str(tmp_path / "curves")).Reload()
    assert {"train/samples_per_second", "train/trunk_share"} <= set(written.Tags()["scalars"])
    for number, name in enumerate(("loss", "grad_norm", "learning_rate")):
        curve = [(event.step, event.value) for event in written.Scalars(f"train/{name}")]
        assert curve == [(step, pytest.approx(each[number])) for step, each in enumerate(told(trainer), start=1)]


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    straight = trainer_of(tiny_split("llama"), tmp_path / "straight", **saving)
    straight.train()
    again = trainer_of(tiny_split("llama"), tmp_path / "straight", **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert told(again) == told(straight)
    expected, got = whole_weights(straight.run), whole_weights(again.run)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert again.run.update_id == 6


@pytest.mark.slow
def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer_of(tiny_split("llama"), tmp_path, **saving).train()
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    again = trainer_of(tiny_split("llama"), tmp_path, **saving)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"


class Losing(LocalTrunk):
    """A trunk that is lost at some updates, once each."""

    def __init__(self, trunk: Trunk, lost_at: set[int], num_refusals: int = 0) -> None:
        super().__init__(trunk)
        self.lost_at = lost_at
        self.num_refusals = num_refusals
        self.num_refused = 0

    def start_training(self, spec: TrunkTrainingSpec) -> TrunkTraining:
        if self.num_refused < self.num_refusals and len(self.lost_at) < 2:
            self.num_refused += 1
            raise ConnectionError("not there yet")
        training = super().start_training(spec)
        update = training.update

        def losing(update_id: int, *rest: Any) -> None:
            if update_id in self.lost_at:
                self.lost_at.remove(update_id)
                raise ConnectionError("gone")
            update(update_id, *rest)

        training.update = losing  # type: ignore[method-assign]
        return training


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [2, 100])
def test_it_goes_on_where_the_trunk_comes_back(tmp_path: Path, save_steps: int) -> None:
    """With a checkpoint to go on from, and with none but the beginning."""
    straight = trainer_of(tiny_split("llama"), tmp_path / "straight")
    straight.train()
    split = tiny_split("llama")
    # For longer than it may be lost at one update.
    split.client.trunk = losing = Losing(split.trunk, {4, 6}, num_refusals=MAX_LOSSES + 1)
    trainer = trainer_of(split, tmp_path / "lossy", save_strategy="steps", save_steps=save_steps)
    trainer.train()
    assert not losing.lost_at
    assert losing.num_refused == MAX_LOSSES + 1
    assert told(trainer)[-1] == told(straight)[-1]
    expected, got = whole_weights(straight.run), whole_weights(trainer.run)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert not (tmp_path / "lossy" / "beginning").exists()


@pytest.mark.slow
def test_what_an_earlier_training_left_is_not_gone_back_to(tmp_path: Path) -> None:
    earlier = trainer_of(tiny_split("llama"), tmp_path, save_strategy="steps", save_steps=6, learning_rate=5e-2)
    earlier.train()
    straight = trainer_of(tiny_split("llama"), tmp_path / "straight")
    straight.train()
    split = tiny_split("llama")
    split.client.trunk = losing = Losing(split.trunk, {2, 5})
    trainer = trainer_of(split, tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    assert not losing.lost_at
    assert told(trainer)[-1] == told(straight)[-1]
    assert_same_weights(straight, trainer)


@pytest.mark.slow
def test_lost_before_its_first_checkpoint_it_goes_back_to_the_one_it_came_from(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    straight = trainer_of(tiny_split("llama"), tmp_path / "straight", **saving)
    straight.train()
    split = tiny_split("llama")
    split.client.trunk = losing = Losing(split.trunk, {3})
    trainer = trainer_of(split, tmp_path / "other", **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert not losing.lost_at
    assert_same_weights(straight, trainer)


@pytest.mark.slow
def test_a_scaler_goes_on_where_the_trunk_comes_back(tmp_path: Path) -> None:
    straight = trainer_of(tiny_split("llama"), tmp_path / "straight", fp16=True)
    straight.train()
    split = tiny_split("llama")
    split.client.trunk = losing = Losing(split.trunk, {2})
    trainer = trainer_of(split, tmp_path / "lossy", fp16=True)
    trainer.train()
    assert not losing.lost_at
    assert_same_weights(straight, trainer)


@pytest.mark.slow
@pytest.mark.parametrize("on_lost", ["stop", "skip"])
def test_an_update_at_which_the_trunk_is_lost_again_and_again(tmp_path: Path, on_lost: str) -> None:
    split = tiny_split("llama")
    trainer = trainer_of(split, tmp_path, save_strategy="steps", save_steps=2, on_lost=on_lost)
    forward, num_losses = split.client.forward_across, 0

    def losing(inputs: dict[str, Any]) -> Any:
        nonlocal num_losses
        if trainer.state.global_step == 3:
            num_losses += 1
            raise TimeoutError("too slow")
        return forward(inputs)

    split.client.forward_across = losing  # type: ignore[method-assign]
    if on_lost == "stop":
        with pytest.raises(TimeoutError, match="too slow"):
            trainer.train()
        assert trainer.run.update_id == 3
    else:
        trainer.train()
        assert trainer.run.update_id == 5
        assert trainer.run.guard.counts == {"lost": 1}
    assert num_losses == 3


def test_patience_begins_anew_whenever_the_trunk_has_done_something() -> None:
    patience = Patience(10.0, now_s=0.0)
    assert [patience.next_pause_s(now_s) for now_s in (1.0, 2.0, 9.95)] == pytest.approx([0.1, 0.2, 0.05])
    assert patience.next_pause_s(10.0) is None
    patience.note_alive(100.0)
    assert patience.next_pause_s(105.0) == pytest.approx(0.1)
    for _ in range(20):
        longest_s = patience.next_pause_s(101.0)
    assert longest_s == 5.0


@pytest.mark.slow
def test_the_best_checkpoint_is_what_is_kept(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    for parameter in split.client.get_output_embeddings().parameters():
                        parameter.mul_(-3)

    split = tiny_split("llama")
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    trainer = trainer_of(split, tmp_path, [Spoil()], **every, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert trainer.run.update_id == 2


def test_the_adapter_is_one_that_plain_peft_loads(tmp_path: Path) -> None:
    split = tiny_split("qwen3")
    whole = copy.deepcopy(split.whole)
    trainer = trainer_of(split, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    plain = PeftModel.from_pretrained(whole, str(tmp_path / "adapter"))
    expected = whole_weights(trainer.run)
    got = {without_prefix(name): tensor for name, tensor in plain.named_parameters() if "lora_" in name}
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_it_draws_curves_and_says_where_the_time_went(tmp_path: Path) -> None:
    trainer = trainer_of(tiny_split("llama"), tmp_path)
    trainer.train()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    entries = [entry for entry in trainer.state.log_history if "loss" in entry][1:]
    assert all(0 < entry["trunk_share"] < 1 and entry["samples_per_second"] > 0 for entry in entries)
    assert len(entries) == 5


def test_batches_whose_loss_is_nan_are_left_out_and_counted(tmp_path: Path) -> None:
    class Poisoned(SplitTrainer):
        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return loss * math.nan if self.state.global_step == 2 else loss

    torch.manual_seed(5)
    trainer = Poisoned(
        tiny_split("llama").client, SplitTrainingArguments(**options(tmp_path)), lora=lora(), train_dataset=Rows()
    )
    trainer.train()
    assert trainer.run.update_id == 5
    assert trainer.state.log_history[-2]["nonfinite_updates"] == 1
    assert all(tensor.isfinite().all() for tensor in whole_weights(trainer.run).values())


def test_what_cannot_be(tmp_path: Path) -> None:
    split = tiny_split("llama")
    arguments = SplitTrainingArguments(**options(tmp_path))
    with pytest.raises(TrainingError, match="SplitTrainer takes a split model; got LlamaForCausalLM"):
        SplitTrainer(split.whole, arguments, train_dataset=Rows())  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="it takes no optimizers"):
        SplitTrainer(split.client, arguments, optimizers=(None, None))
    with pytest.raises(TrainingError, match="on_nonfinite is one of skip, lower_rate, stop; got 'ignore'"):
        SplitTrainingArguments(**options(tmp_path, guard_nonfinite="ignore"))
    for wrong, sentence in (
        ({"weight_decay": 0.0, "save_only_model": True}, "save_only_model keeps an adapter only"),
        ({"weight_decay": 0.0, "push_to_hub": True}, "push_to_hub is not there"),
        ({"weight_decay": 0.0, "auto_find_batch_size": True}, "auto_find_batch_size is not there"),
        ({"weight_decay": 0.0, "optim": "adafactor"}, "is another than torch's Adafactor: take one of torch's"),
    ):
        with pytest.raises(TrainingError, match=sentence):
            SplitTrainer(split.client, SplitTrainingArguments(**options(tmp_path, **wrong)))  # type: ignore[arg-type]
        assert split.client.run is None
    with pytest.raises(ValueError, match="eval_dataset"):
        SplitTrainer(
            split.client, SplitTrainingArguments(**options(tmp_path, eval_strategy="steps", eval_steps=1)), lora=lora()
        )
    assert split.client.run is None, "a trainer that cannot be made leaves no training"
    with pytest.raises(TrainingError, match="train= takes one or more of"):
        SplitTrainer(split.client, SplitTrainingArguments(**options(tmp_path, train_parts=["head"])), lora=lora())
    trainer = trainer_of(split, tmp_path / "none")
    with pytest.raises(TrainingError, match=r"no whole checkpoint of a split training in .*none"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(TrainingError, match="its run is taken over as it is: leave lora= out"):
        SplitTrainer(split.client, arguments, lora=lora())
    trainer.run.save_checkpoint("split", tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(json.dumps({}))
    trainer.run.close()
    done = {"global_step": 6}
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(done))
    other = trainer_of(tiny_split("qwen3"), tmp_path)
    with pytest.raises(TrainingError, match="is at update 6 already, and max_steps is 6"):
        other.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(json.dumps({}))
    with pytest.raises(TrainingError, match="its model_type is llama, here qwen3"):
        other.train(resume_from_checkpoint=True)
