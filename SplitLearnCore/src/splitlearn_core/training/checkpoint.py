"""Stopping and going on: both halves of a training in one directory of the client, and the adapter as `peft` has it.

A checkpoint is a directory with one file: trained parameters and the optimizer's state of both sides, and in its header
how far the training is. One file takes the place of another in one step, so whoever is killed at any moment leaves the
checkpoint before, or this one, and never neither.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn, optim

from splitlearn_core.errors import CheckpointError, TrainingError
from splitlearn_core.training.generators import generator_states, restore_generators
from splitlearn_core.training.optimizers import said_of
from splitlearn_core.training.port import TrunkTraining

if TYPE_CHECKING:
    from splitlearn_core.training.adapters import Adapter
    from splitlearn_core.training.run import TrainingRun

logger = logging.getLogger(__name__)
PARAMETER = "parameter "
"""What stands before a parameter's name; before it stands the optimizer's word for anything else, as `exp_avg `."""
TRAINING = "training.safetensors"
CLIENT, TRUNK = "client: ", "trunk: "
"""What the names of each side's tensors begin with."""
TOLD = "training"
"""Under which key of the file's header JSON says the rest."""


def save_checkpoint(run: TrainingRun, directory: Path) -> None:
    """Write both halves of a training, under one number of updates."""
    told = {
        "update_id": run.update_id,
        "next_pass_id": run.passes.next_pass_id,
        "groups": [said_of(group) for group in run.optimizer.param_groups],
        "further_groups": further_groups(run),
        "numbers": optimizer_numbers(run),
        "guard": run.guard.state(),
        "codecs": dict(run.passes.training.codecs),
        **belonging(run),
    }
    client = {**client_state(run), **generator_states()}
    trunk = run.passes.training.read_state() if run.passes.is_trainable else {}
    tensors = {CLIENT + name: tensor for name, tensor in client.items()}
    tensors |= {TRUNK + name: tensor for name, tensor in trunk.items()}
    with replaced(directory) as place:
        save_file(contiguous(tensors), place / TRAINING, {TOLD: json.dumps(told)})


def load_checkpoint(run: TrainingRun, directory: Path) -> None:
    """Go on from what was written; the trunk gets its half, whatever server it is on now.

    Raises:
        CheckpointError: there is none, or it is damaged.
        TrainingError: it is of another training.
    """
    told, client, trunk = read_checkpoint(directory)
    for name, value in belonging(run).items():
        if told.get(name) != value:
            raise TrainingError(
                f"{directory} is of another training: {differing(name, told.get(name), value)}; go on with the "
                "arguments that it was begun with, or begin another"
            )
    if (theirs := told.get("further_groups", [])) != (ours := further_groups(run)):
        left_out = [sum(len(names) for names in groups) for groups in (theirs, ours)]
        raise TrainingError(
            f"{directory} is of another training: its weight decay leaves {left_out[0]} parameters alone, here it is "
            f"{left_out[1]}, or others: look at weight_decay and no_weight_decay"
        )
    own = own_parameters(run)
    if {name for name in client if name.startswith(PARAMETER)} != {PARAMETER + name for name in own}:
        raise TrainingError(f"{directory} is of another training: other parameters of Bottom and Top train in it")
    run.passes.close()  # first: a server may have room for one of the two only
    run.passes.restart(training_with_state(run, trunk, told["update_id"]), told["update_id"], told["next_pass_id"])
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(client[PARAMETER + name])
    put_optimizer_state(run.optimizer, own, client, told["numbers"])
    for group, options in zip(run.optimizer.param_groups, told["groups"], strict=True):
        group.update({name: restored(value, group.get(name)) for name, value in options.items()})
    run.optimizer.zero_grad()
    run.guard.restore(told["guard"])
    restore_generators(client)
    if (now := dict(run.passes.training.codecs)) != told["codecs"]:
        logger.warning(
            "%s was trained with codecs %s, and goes on with %s: it will not be the same to the last bit",
            directory,
            told["codecs"] or "raw",
            now or "raw",
        )


def training_with_state(run: TrainingRun, state: Mapping[str, torch.Tensor], update_id: int) -> TrunkTraining:
    """Begin a training of the trunk anew and bring it to where a checkpoint left it.

    Only then does the run get it: were it lost on the way, a loop would go on with a trunk that is at its beginning.
    """
    training = run.model.trunk.start_training(run.spec)
    try:
        if state:
            training.write_state(state, update_id)
    except BaseException:
        training.close()
        raise
    return training


def read_checkpoint(directory: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what a checkpoint tells, and the tensors of client and trunk; raises `CheckpointError`."""
    try:
        with safe_open(directory / TRAINING, "pt") as file:
            told = json.loads(file.metadata()[TOLD])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} is no checkpoint of a training: it has no {TRAINING}") from error
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {directory} is damaged: {error}") from error
    return told, of_side(tensors, CLIENT), of_side(tensors, TRUNK)


def of_side(tensors: Mapping[str, torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a side, without that."""
    return {name.removeprefix(side): tensor for name, tensor in tensors.items() if name.startswith(side)}


def save_adapter(run: TrainingRun, directory: Path) -> None:
    """Write the adapter of all parts as one of the whole model, which `peft` loads onto that.

    Raises:
        TrainingError: what trains is no adapter.
    """
    if run.adapter is None:
        raise TrainingError("all weights train: there is no adapter to save; save_checkpoint keeps both sides")
    far = run.passes.training.read_state() if run.passes.is_trainable else {}
    values = {
        **{name: parameter.detach() for name, parameter in own_parameters(run).items()},
        **{name.removeprefix(PARAMETER): tensor for name, tensor in far.items() if name.startswith(PARAMETER)},
    }
    # In peft's files the adapter's name, "default", is no part of the tensors' names.
    tensors = {f"base_model.model.{name.replace('.default.', '.')}": values[name] for name in run.adapter.tensors}
    with replaced(directory) as place:
        save_file(contiguous(tensors), place / "adapter_model.safetensors", {"format": "pt"})
        run.adapter.config.save_pretrained(str(place))


def own_parameters(run: TrainingRun) -> dict[str, nn.Parameter]:
    """Return what trains of Bottom and Top, by name."""
    proxies = run.passes.proxies.parameters
    return {n: p for n, p in run.model.named_parameters() if p.requires_grad and n not in proxies}


def further_groups(run: TrainingRun) -> list[list[str]]:
    """Return the names of the parameters of each group but the first, of both sides."""
    name_of = {id(parameter): name for name, parameter in run.model.named_parameters()}
    return [sorted(name_of[id(p)] for p in group["params"]) for group in run.optimizer.param_groups[1:]]


def client_state(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Return the trained parameters of Bottom and Top and the optimizer's tensors of each."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in own_parameters(run).items():
        tensors[PARAMETER + name] = parameter.detach()
        for key, value in run.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{key} {name}"] = value
    return tensors


def optimizer_numbers(run: TrainingRun) -> dict[str, dict[str, Any]]:
    """Return what the optimizer keeps of each parameter that is no tensor."""
    numbers = {}
    for name, parameter in own_parameters(run).items():
        state = run.optimizer.state.get(parameter, {})
        numbers[name] = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
    return {name: kept for name, kept in numbers.items() if kept}


def put_optimizer_state(
    optimizer: optim.Optimizer,
    own: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Mapping[str, Any]],
) -> None:
    """Give an optimizer the state that was written."""
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(" ")
        if key != PARAMETER.strip() and name in own:
            optimizer.state[own[name]][key] = tensor.to(own[name].device if tensor.dim() else "cpu", copy=True)
    for name, kept in numbers.items():
        optimizer.state[own[name]].update(kept)


def belonging(run: TrainingRun) -> dict[str, Any]:
    """Return what has to be the same for a checkpoint to fit."""
    info = run.model.trunk.info
    return {
        "model_type": info.model_type,
        "split_points": list(info.split_points),
        "fingerprint": info.fingerprint,
        "optimizer": type(run.optimizer).__name__,
        "modules": None if run.adapter is None else list(run.adapter.modules),
        "adapter": None if run.adapter is None else settings_of(run.adapter),
    }


def differing(name: str, before: Any, now: Any) -> str:
    """Say in which settings of a name two trainings differ; of an adapter's modules, which are many, in how many."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return " and ".join(differing(f"{name}'s {key}", before.get(key), now.get(key)) for key in keys)
    if name == "modules" and isinstance(before, list) and isinstance(now, list):
        told = "of others" if len(before) == len(now) else f"of {len(now)}"
        return f"its adapter is of {len(before)} modules, here {told}"
    return f"its {name} is {before}, here {now}"


def settings_of(adapter: Adapter) -> dict[str, Any]:
    """Return what makes an adapter beside its values and modules, as JSON has it: ranks, scales, dropout."""
    described = adapter.described(adapter.tensors)
    return {name: value for name, value in described.items() if name != "target_modules"}


def restored(value: Any, now: Any) -> Any:
    """Return an option as the optimizer had it: JSON knows no tuples."""
    return tuple(value) if isinstance(now, tuple) else value


def contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as safetensors writes them: no two of them share memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


@contextmanager
def replaced(directory: Path) -> Iterator[Path]:
    """Give a new directory whose files take the place of those in another when the block has ended without an error.

    Raises:
        CheckpointError: they could not be written; what was there is there still.
    """
    # Of a fixed name, so that the next save clears away what a process left that was killed.
    place = directory.with_name(f".{directory.name}.writing")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        yield place
        for written in (*place.iterdir(), place):
            sync(written)
        put(place, directory)
        sync(directory)
        sync(directory.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory} could not be written ({error}); what was there is there still") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def put(place: Path, directory: Path) -> None:
    """Move files to where they belong. Killed meanwhile, it leaves those before, these, or too few to be read."""
    if not directory.exists():
        place.rename(directory)
        return
    files = sorted(place.iterdir())
    if len(files) > 1:
        files = [file for file in files if not is_there(file, directory / file.name)]
    # One file replaces another in one step. Of two, one of before and one of now would be an adapter that never was.
    for file in files[1:]:
        (directory / file.name).unlink(missing_ok=True)
    for file in files:
        file.replace(directory / file.name)


def is_there(file: Path, place: Path) -> bool:
    """Whether a place has a file of the same contents."""
    return place.exists() and file.read_bytes() == place.read_bytes()


def sync(path: Path) -> None:
    """Have a file's contents, or a directory's names, on the disk, and not only in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
