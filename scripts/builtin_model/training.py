"""The training loop, resumable. Shapes: B sequences, T tokens a sequence, V entries of the vocabulary."""

import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from torch.nn import functional
from transformers import GPT2LMHeadModel

from builtin_model.blocks import BlockStream
from builtin_model.evaluation import bits_per_byte
from builtin_model.files import TrainingDirectory
from builtin_model.model import build_model, grown
from builtin_model.optimizer import build_optimizers
from builtin_model.plan import TrainingPlan


class Trainer:
    """One run in one directory: model, optimizers, data position and counters, saved and restored together."""

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        held_out: Sequence[tuple[Sequence[int], int]],
        plan: TrainingPlan,
        directory: TrainingDirectory,
    ) -> None:
        self._stream = BlockStream(documents, seed=plan.seed)
        self._held_out = held_out
        self._plan = plan
        self._directory = directory
        self._step = 0
        self._tokens = 0
        self._cpu_s = 0.0
        self._stopping = False
        # One single-threaded worker a core: they meet once a step, where threads inside the kernels would meet
        # hundreds of times, each time waiting for the one whose core is busy with something else.
        self._workers = ThreadPoolExecutor(plan.workers, initializer=torch.set_num_threads, initargs=(1,))
        torch.manual_seed(plan.seed)
        self._adopt(self._fresh_model(plan.layers_at(0)))

    def run(self) -> None:
        """Train to the plan's end, or until SIGTERM; resumes when the directory holds a checkpoint."""
        self._resume()
        signal.signal(signal.SIGTERM, self._stop)
        while self._step < self._plan.steps and not self._stopping:
            self._grow_if_due()
            self._log_step(*self._timed_step())
            if self._step % self._plan.checkpoint_every == 0:
                self._save()
            if self._step % self._plan.evaluate_every == 0:
                self._log_evaluation()
        self._save()

    def _fresh_model(self, num_layers: int) -> GPT2LMHeadModel:
        plan = self._plan
        return build_model(num_layers=num_layers, width=plan.width, vocab_size=plan.vocab_size, context=plan.long_block)

    def _adopt(self, model: GPT2LMHeadModel) -> None:
        """Make `model` the one that is trained, with optimizers that begin anew."""
        self._model = model.train()
        self._parameters = list(model.parameters())
        self._optimizers = build_optimizers(
            model, name=self._plan.optimizer, matrix_lr=self._plan.matrix_lr, other_lr=self._plan.other_lr
        )
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def _grow_if_due(self) -> None:
        num_layers = self._plan.layers_at(self._step)
        if num_layers != self._model.config.n_layer:
            self._adopt(grown(self._model, num_layers=num_layers))

    def _timed_step(self) -> tuple[float, float]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        loss = self._train_step()
        self._cpu_s += time.process_time() - cpu_s
        return loss, time.perf_counter() - wall_s

    def _train_step(self) -> float:
        block = self._plan.block_at(self._step)
        batch_BT = self._stream.next_batch(self._plan.batch_tokens // block, block)
        self._set_rates(self._plan.rate_at(self._step))
        loss = self._accumulate_gradients(batch_BT)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._step += 1
        self._tokens += batch_BT.size(0) * block
        return loss

    def _accumulate_gradients(self, batch_BT: torch.Tensor) -> float:
        """Set the parameters' gradients from all shards, summed in their order whichever ends first."""
        shards = batch_BT.chunk(self._plan.shards)
        total = 0.0
        for loss, gradients in self._workers.map(self._shard_gradients, shards):
            total += loss / len(shards)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                share = gradient / len(shards)
                parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)
        return total

    def _shard_gradients(self, batch_BT: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
        logits_BTV = self._model(batch_BT[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), batch_BT[:, 1:].flatten())
        return loss.item(), torch.autograd.grad(loss, self._parameters)

    def _set_rates(self, share: float) -> None:
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share

    def _log_step(self, loss: float, wall_s: float) -> None:
        if self._step % 20 == 0:
            self._log(loss=round(loss, 4), tokens=self._tokens, cpu_s=round(self._cpu_s), wall_s=round(wall_s, 2))

    def _log_evaluation(self) -> None:
        self._model.eval()
        context = self._plan.block_at(self._step)
        bits = bits_per_byte(self._model, self._held_out, context=context, stride=context * 3 // 4)
        self._model.train()
        self._log(held_out_bits_per_byte=round(bits, 4), context=context)

    def _log(self, **values: float) -> None:
        line = json.dumps({"step": self._step, "time": time.strftime("%H:%M:%S"), **values})
        print(line, flush=True)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _save(self) -> None:
        """Write the checkpoint beside the old one, then replace it, so that a crash leaves one that is whole."""
        state: dict[str, Any] = {
            "plan": asdict(self._plan),
            "num_layers": self._model.config.n_layer,
            "model": self._model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "stream": self._stream.state_dict(),
            "step": self._step,
            "tokens": self._tokens,
            "cpu_s": self._cpu_s,
        }
        unfinished = self._directory.checkpoint.with_suffix(".unfinished")
        torch.save(state, unfinished)
        os.replace(unfinished, self._directory.checkpoint)

    def _resume(self) -> None:
        if not self._directory.checkpoint.exists():
            return
        state = torch.load(self._directory.checkpoint, weights_only=True)
        self._plan.check_resumes(TrainingPlan(**state["plan"]))
        self._adopt(self._fresh_model(state["num_layers"]))
        self._model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._stream.load_state_dict(state["stream"])
        self._step, self._tokens, self._cpu_s = state["step"], state["tokens"], state["cpu_s"]
