"""`SplitTrainer` with a server in another process, which is killed and comes back."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from splitlearn import SplitModelForCausalLM
from splitlearn.training import SplitTrainer, SplitTrainingArguments
from tests.support.checkpoints import save_tiny
from tests.support.training import batches, whole_weights
from tests.support.trunk_process import TrunkProcess

PATIENT = {"drain_timeout_s": 120.0, "drain_idle_timeout_s": 60.0}
"""A server that stops waits for clients on a machine that has much else to do."""


class Replaced(TrainerCallback):
    """Kills the server behind some update, and starts another at its address."""

    def __init__(self, stack: ExitStack, model: Path, at_step: int) -> None:
        self._stack, self._model, self._at_step = stack, model, at_step
        self._process = stack.enter_context(TrunkProcess())
        self.address = self._process.start(model, config=PATIENT)
        self.was_replaced = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._at_step and not self.was_replaced:
            self._process.kill()
            other = self._stack.enter_context(TrunkProcess())
            assert other.start(self._model, port=int(self.address.rpartition(":")[2])) == self.address
            self.was_replaced = True


class Stopped(Replaced):
    """Has the server stop in order behind some update, and another start at its address when it has."""

    def __init__(self, stack: ExitStack, model: Path, at_step: int) -> None:
        super().__init__(stack, model, at_step)
        self._pool = stack.enter_context(ThreadPoolExecutor(1))
        self.updates: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.updates.append(state.global_step)
        if state.global_step == self._at_step and not self.was_replaced:
            self.was_replaced = True
            self.replacing = self._pool.submit(self._replace)

    def _replace(self) -> None:
        self._process.stop(self.address)
        other = self._stack.enter_context(TrunkProcess())
        assert other.start(self._model, port=int(self.address.rpartition(":")[2])) == self.address


def trained(
    model: Path, directory: Path, *, trunk: str | None, callback: TrainerCallback | None = None, **beside: Any
) -> Any:
    torch.manual_seed(5)
    split = SplitModelForCausalLM.from_pretrained(str(model), trunk=trunk)
    rows = [{key: tensor[row] for key, tensor in batch.items()} for batch in batches(6) for row in (0, 1)]
    chosen: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        **beside,
    }
    arguments = SplitTrainingArguments(output_dir=str(directory), **chosen)
    trainer = SplitTrainer(
        split,
        arguments,
        lora=LoraConfig(r=2, target_modules="all-linear"),
        train_dataset=rows,
        eval_dataset=rows[:4],
        callbacks=[] if callback is None else [callback],
    )
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [1, 3, 5])
def test_a_server_that_is_killed_is_waited_for(tmp_path: Path, at_step: int) -> None:
    model = save_tiny("llama", tmp_path / "model")
    expected = trained(model, tmp_path / "local", trunk=None)
    with ExitStack() as stack:
        callback = Replaced(stack, model, at_step)
        got = trained(model, tmp_path / "remote", trunk=callback.address, callback=callback)
        assert callback.was_replaced
        weights = whole_weights(got.run)
        assert all(torch.equal(weights[name], tensor) for name, tensor in whole_weights(expected.run).items())
        losses = [[e["eval_loss"] for e in each.state.log_history if "eval_loss" in e][-1] for each in (expected, got)]
        assert losses[0] == losses[1]
        got.run.close()
        got.model.trunk.close()


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", [{"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 1}])
def test_a_server_that_stops_is_saved_from_and_no_update_is_done_twice(
    tmp_path: Path, evaluated: dict[str, Any]
) -> None:
    model = save_tiny("llama", tmp_path / "model")
    many = {"max_steps": 60, "num_train_epochs": 100, "save_strategy": "no", **evaluated}
    expected = trained(model, tmp_path / "local", trunk=None, **many)
    with ExitStack() as stack:
        callback = Stopped(stack, model, 3)
        got = trained(model, tmp_path / "remote", trunk=callback.address, callback=callback, **many)
        callback.replacing.result()
        assert callback.updates == list(range(1, 61))
        weights = whole_weights(got.run)
        assert all(torch.equal(weights[name], tensor) for name, tensor in whole_weights(expected.run).items())
        curves = [[e["eval_loss"] for e in each.state.log_history if "eval_loss" in e] for each in (expected, got)]
        assert curves[0] == curves[1]
        got.run.close()
        got.model.trunk.close()
