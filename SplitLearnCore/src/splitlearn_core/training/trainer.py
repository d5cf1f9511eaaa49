"""`transformers.Trainer` for a split model: both sides in every checkpoint, and a lost trunk is waited for.

Progress bars, evaluation, schedules, accumulation, clipping and reports are `Trainer`'s own. A checkpoint of it is a
directory `checkpoint-N`; beside `Trainer`'s files there are both halves of the training, in `split/`.
"""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from splitlearn_core.errors import TrainingBusyError, TrainingError
from splitlearn_core.parts.client import SplitModel
from splitlearn_core.training.arguments import SplitTrainingArguments
from splitlearn_core.training.choice import choose
from splitlearn_core.training.curves import CURVES, draw_curves
from splitlearn_core.training.run import TrainingRun
from splitlearn_core.training.skeleton import model_without_storage

try:
    from transformers import Trainer
    from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput
except ImportError as error:
    raise ImportError("SplitTrainer needs accelerate: pip install 'splitlearn-core[train]'") from error

if TYPE_CHECKING:
    from peft import LoraConfig

logger = logging.getLogger(__name__)
HALVES = "split"
"""Directory of both halves in a checkpoint of `Trainer`."""
BEGINNING = "beginning"
"""The checkpoint that is there before the first step, until there is another."""
LOST = (ConnectionError, TimeoutError, TrainingBusyError)
"""What a trunk raises that cannot be reached, whatever the wire is, or has no room yet, as for a client that comes back
before its old place is free."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
MAX_LOSSES = 3
"""How often the trunk may be lost at one update: a batch that it cannot do in time would be tried for ever."""


class TrunkEnds(Exception):
    """Leaves the loop of `Trainer`: the trunk's server stops, and both sides are saved as they are."""


class SplitTrainer(Trainer):
    """Trains a split model as `transformers.Trainer` trains a whole one.

    Args:
        model: a split model; a run that it has already (`model.start_training`) is taken over as it is.
        args: see `SplitTrainingArguments`; None for the defaults.
        lora: adapter of the parts that train, as `peft` takes it for the whole model; None to train all their weights.
        **others: those of `transformers.Trainer`, without `optimizers` and `model_init`.

    Raises:
        TrainingError: the model is not split, or what the arguments ask for cannot be trained.
    """

    def __init__(
        self,
        model: SplitModel,
        args: SplitTrainingArguments | None = None,
        *,
        lora: "LoraConfig | None" = None,
        **others: Any,
    ) -> None:
        if not isinstance(model, SplitModel):
            raise TrainingError(
                f"SplitTrainer takes a split model; got {type(model).__name__}: use transformers.Trainer"
            )
        if refused := sorted({"optimizers", "optimizer_cls_and_kwargs", "model_init"} & set(others)):
            raise TrainingError(f"SplitTrainer makes the optimizer of both sides itself; it takes no {refused[0]}")
        self.arguments = args = args or SplitTrainingArguments()
        check_arguments(args, has_adapter=lora is not None or (model.run is not None and model.run.adapter is not None))
        if model.run is not None and lora is not None:
            raise TrainingError("this model trains already, and its run is taken over as it is: leave lora= out")
        self.directory = Path(args.output_dir or ".")
        is_new, self.run = model.run is None, model.run or _start(model, args, lora)
        self._times: Mapping[str, float] = {}
        self._patience = Patience(args.reconnect_timeout_s, time.monotonic())
        self._last_saved: Path | None = None
        self._ends_at: int | None = None
        self._only_to_go_on: set[Path] = set()
        self._losses: Counter[int] = Counter()
        try:
            super().__init__(model, args, optimizers=(self.run.optimizer, None), **others)
        except BaseException:
            if is_new:
                self.run.close()
            raise

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; when the trunk is lost, wait for it and go on from the last checkpoint, bit for bit.

        A server that stops in order is heard: what has been done until then is saved, and nothing of it done again.

        Args:
            resume_from_checkpoint: a directory `checkpoint-N`, or True for the last whole one of the output directory.
            *args: as in `transformers.Trainer`.
            **kwargs: as in `transformers.Trainer`.

        Raises:
            TrainingError: there is no such checkpoint, it is of another training, or updates make no sense any more.
            ConnectionError: the trunk was lost and did not come back in `reconnect_timeout_s`, or was lost three times
                at one update, and `on_lost` is not `"skip"`.
        """
        # Of what lies in the output directory only that is gone back to which belongs to this training.
        self._last_saved = self._checkpoint(resume_from_checkpoint)
        self._losses.clear()
        self._only_to_go_on.clear()
        self._patience.note_alive(time.monotonic())
        scaler = getattr(self.accelerator, "scaler", None)
        scale = None if scaler is None else scaler.state_dict()
        if self._last_saved is None:
            self.run.save_checkpoint(BEGINNING, self.directory)
        while True:
            self._forget_the_try_before()
            try:
                done = super().train(None if self._last_saved is None else str(self._last_saved), *args, **kwargs)
                break
            except TrunkEnds:
                self._leave()
            except LOST as error:
                self._note_lost(error)
                if scaler is not None:  # it remembers to have undone the scale of gradients that are gone
                    scaler._per_optimizer_states.clear()
                if self._last_saved is None:
                    self._bring_back(BEGINNING, self.directory)
                    if scaler is not None:
                        scaler.load_state_dict(scale)
        if self._ends_at is not None:  # behind the last update: what was trained is there alone before long
            self._only_to_go_on.discard(self._directory_now)
        for directory in (self.directory / BEGINNING, *self._only_to_go_on):
            shutil.rmtree(directory, ignore_errors=True)
        if self.arguments.draw_curves:
            draw_curves(self.state.log_history, self.directory / CURVES)
        return done

    def _checkpoint(self, asked: str | bool | None) -> Path | None:
        if not asked:
            return None
        found = last_checkpoint(self.directory) if asked is True else Path(str(asked))
        if found is None or not is_whole(found):
            where = self.directory if found is None else found
            raise TrainingError(
                f"there is no whole checkpoint of a split training in {where}: begin one without resuming"
            )
        step = update_of(found)
        if 0 < self.args.max_steps <= step:
            raise TrainingError(
                f"{found} is at update {step} already, and max_steps is {self.args.max_steps}: raise it, or begin in "
                "another directory"
            )
        return found

    def _bring_back(self, tag: str, directory: str | Path) -> None:
        """Go on from a checkpoint, and wait for a trunk that is not there yet: that is no loss of an update."""
        while True:
            try:
                return self.run.resume(tag, directory)
            except LOST as error:
                self._wait(error)

    def _forget_the_try_before(self) -> None:
        self._times, self._ends_at = {}, None

    def _leave(self) -> None:
        self._patience.note_alive(time.monotonic())
        logger.warning("the trunk's server stops: update %d is saved, a server is waited for", self.state.global_step)
        self.run.leave_trunk()

    def _note_lost(self, error: Exception) -> None:
        self._patience.note_alive(time.monotonic())  # until now
        logger.warning("the trunk was lost at step %d: %s", self.state.global_step, error)
        self._losses[self.state.global_step] += 1
        num_losses = self._losses[self.state.global_step]
        # Once more than that: it is not the update, which was left out.
        if num_losses > MAX_LOSSES or (num_losses == MAX_LOSSES and self.arguments.on_lost == "stop"):
            raise error

    def _is_left_out(self) -> bool:
        return self._losses[self.state.global_step] >= MAX_LOSSES

    def _wait(self, error: Exception) -> None:
        pause_s = self._patience.next_pause_s(time.monotonic())
        if pause_s is None:
            raise error
        logger.warning("the trunk is waited for: %s", error)
        time.sleep(pause_s)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do one forward and backward; none for an update at which the trunk was lost too often.

        Raises:
            TrunkEnds: the trunk's server stops, and the update before was the last that it did.
        """
        if self._ends_at is not None:
            raise TrunkEnds
        if self._is_left_out():
            if self.accelerator.sync_gradients:  # the last of the update's
                logger.warning(
                    "update %d is left out: the trunk was lost at it again and again", self.state.global_step
                )
                self.run.guard.counts["lost"] += 1
            return torch.zeros((), device=self.args.device)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._patience.note_alive(time.monotonic())
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Report, and beside what `Trainer` reports how fast it went and where the time went."""
        if "loss" in logs:
            logs |= self._measured()
        super().log(logs, *args, **kwargs)

    def _measured(self) -> dict[str, float]:
        now = {"at": time.perf_counter(), "step": self.state.global_step, **self.run.passes.seconds()}
        before, self._times = self._times, now
        if not before:
            return {}
        wall_s, steps = now["at"] - before["at"], now["step"] - before["step"]
        shares = {f"{name}_share": (now[name] - before[name]) / wall_s for name in ("trunk", "network") if name in now}
        rows = steps * self._train_batch_size * self.args.gradient_accumulation_steps
        left_out = {f"{kind}_updates": float(count) for kind, count in self.run.guard.counts.items()}
        return {"samples_per_second": rows / wall_s, **shares, **left_out}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter of all parts as one ordinary adapter of the whole model, for plain `peft`.

        Raises:
            TrainingError: all weights train, and no adapter.
        """
        directory = self.directory if output_dir is None else Path(output_dir)
        if _internal_call and (self.run.adapter is None or not self.args.save_only_model):
            directory.mkdir(parents=True, exist_ok=True)  # both halves follow
            return
        try:
            self.run.save_adapter(directory)
        except LOST:
            if self._last_saved != self._directory_now:
                raise
            self._bring_back(HALVES, self._last_saved)
            self.run.save_adapter(directory)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        # Behind an update, and behind the last of an epoch once more. What is due is done still, if the trunk stays for
        # so long; it is left before the next update.
        if self.run.is_trunk_ending and self._ends_at is None:
            self._save_before_it_ends(model, trial)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self._ends_at is not None:
            assert self._last_saved is not None, "it was saved just now"
            self.state.save_to_json(str(self._last_saved / TRAINER_STATE_NAME))

    def _save_before_it_ends(self, model: nn.Module, trial: Any) -> None:
        directory = self._directory_now
        if self.args.save_strategy == SaveStrategy.NO or self.args.save_only_model:
            self._only_to_go_on.add(directory)
        only_model, self.args.save_only_model = self.args.save_only_model, False
        try:
            self._save_checkpoint(model, trial)
        finally:
            self.args.save_only_model = only_model
        self._ends_at = self.state.global_step

    @property
    def _directory_now(self) -> Path:
        return self.directory / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = self._directory_now
        # What is written last says that it is whole: not that of an earlier training in this place.
        if directory != self._last_saved:
            (directory / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        if is_whole(directory):  # not of a model alone
            self._last_saved = directory

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self.run.save_checkpoint(HALVES, output_dir)
        assert self.lr_scheduler is not None, "it is made before the first step"
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Trainer loads the state of the generators itself, when it has passed the data that was seen.
        state = torch.get_rng_state()
        self._bring_back(HALVES, resume_from_checkpoint)
        torch.set_rng_state(state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.lr_scheduler is not None, "it is made before"
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        # The schedule was made after the optimizer's state came back, and began with the first rate.
        for group, rate in zip(self.run.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None, "asked only where there is one"
        logger.info("going back to the best checkpoint, %s", self.state.best_model_checkpoint)
        self._bring_back(HALVES, self.state.best_model_checkpoint)


class Patience:
    """How long a lost trunk is waited for, counted from when it last did anything. Pure: times are handed in.

    Args:
        timeout_s: how long.
        now_s: the time, on whatever clock.
    """

    def __init__(self, timeout_s: float, now_s: float) -> None:
        self._timeout_s = timeout_s
        self._alive_s = now_s
        self._pause_s = FIRST_PAUSE_S

    def note_alive(self, now_s: float) -> None:
        """Note that the trunk has done something."""
        self._alive_s, self._pause_s = now_s, FIRST_PAUSE_S

    def next_pause_s(self, now_s: float) -> float | None:
        """Return how long to wait before the next try; None when it was long enough."""
        left_s = self._alive_s + self._timeout_s - now_s
        if left_s <= 0:
            return None
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return min(pause_s, left_s)


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the newest checkpoint of a directory that was written to its end; None if there is none."""
    numbered = {int(path.name.rpartition("-")[2]): path for path in Path(output_dir).glob("checkpoint-[0-9]*")}
    return next((numbered[number] for number in sorted(numbered, reverse=True) if is_whole(numbered[number])), None)


def update_of(checkpoint: Path) -> int:
    """Return the number of updates behind which a whole checkpoint was written."""
    return int(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("global_step", 0))


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to its end: the state of `Trainer` comes last."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (checkpoint / HALVES).is_dir() and isinstance(state, dict)


def check_arguments(args: SplitTrainingArguments, *, has_adapter: bool) -> None:
    """Refuse what a training across the cut does not do, before anything is asked for.

    Raises:
        TrainingError: an argument of `Trainer` that would be ignored, or end otherwise than on the whole model.
    """
    refusals = {
        "save_only_model keeps an adapter only: pass lora=, and leave load_best_model_at_end out": args.save_only_model
        and (args.load_best_model_at_end or not has_adapter),
        "push_to_hub is not there: push the directory of save_model()": args.push_to_hub,
        "auto_find_batch_size is not there: it is the trunk that refuses what does not fit": args.auto_find_batch_size,
        f"one process and one device of a client train; there are {args.world_size} processes and {args.n_gpu} GPUs: "
        "start without torchrun, with CUDA_VISIBLE_DEVICES naming one": args.world_size > 1 or args.n_gpu > 1,
    }
    for sentence, applies in refusals.items():
        if applies:
            raise TrainingError(sentence)


def undecayed(model: SplitModel, parts: Iterable[str]) -> frozenset[str]:
    """Return the names of the weights that `Trainer` leaves out of weight decay: biases, and those of norms."""
    trainable = choose(model, parts, None)
    whole = model_without_storage(model.architecture, model.config, model.trunk.info.dtype)
    # It asks its argument alone, and Trainer knows best which those are.
    decayed = Trainer.get_decay_parameter_names(cast(Trainer, None), whole)
    return (trainable.own | trainable.far.keys()).difference(decayed)


def _start(model: SplitModel, args: SplitTrainingArguments, lora: "LoraConfig | None") -> TrainingRun:
    kind, options = args.optimizer()
    return model.start_training(
        train=args.train_parts,
        lora=lora,
        optimizer=kind,
        no_weight_decay=() if lora is not None or not args.weight_decay else undecayed(model, args.train_parts),
        seed=args.seed,
        recompute=args.recompute_trunk,
        guard=args.guard(),
        **options,
    )
