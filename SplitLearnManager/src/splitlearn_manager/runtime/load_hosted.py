"""From the name of a model to its trunk, hosted and warm: what a model's process does first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from splitlearn_core import Trunk, compile_part, load_part
from splitlearn_core.checkpoint.source import locate
from splitlearn_core.parts.classes import architecture_of, loading_class_for
from splitlearn_core.parts.load_piece import read_config
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.points import resolve_split_points
from splitlearn_core.split.support import check_supported
from splitlearn_manager.device import choose_device
from splitlearn_manager.managed_server import log_choices
from splitlearn_manager.runtime.cache_book import CacheLimits
from splitlearn_manager.runtime.engine_on_loop import EngineOnLoop
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk
from splitlearn_manager.runtime.load_reporter import WARMING, LoadReporter, ModelSize
from splitlearn_manager.runtime.model_spec import ModelSpec
from splitlearn_manager.runtime.training_desk import TrainingLimits


def load_hosted_trunk(spec: ModelSpec, reporter: LoadReporter) -> HostedTrunk:
    """Load a trunk as `ManagedServer` does, telling how it goes.

    Raises:
        CheckpointError, SplitPointError, UnsupportedModelError: (of splitlearn_core) it cannot be loaded.
        DeviceNotFoundError: no such device.
    """
    device = choose_device(spec.device)
    reporter.progress("looking for the checkpoint")
    source = locate(spec.model, spec.revision)
    config = read_config(source)
    reporter.ask_for_room(ModelSize(device=with_index(device), weights_bytes=trunk_bytes(config, spec, device)))
    reporter.progress("reading the checkpoint")
    with telling_of_tensors(reporter):
        trunk = load_part(
            spec.model,
            "trunk",
            spec.split_points,
            device=device,
            dtype=spec.dtype,
            attn_implementation=spec.attn_implementation,
            revision=source.commit,
        )
    assert isinstance(trunk, Trunk)
    log_choices(spec.model if source.commit is None else f"{spec.model} at commit {source.commit}", trunk)
    reporter.progress(WARMING)
    warm_up(trunk)
    if spec.compile:
        reporter.progress("compiling")
        compile_part(trunk, inference=True)
    return HostedTrunk(
        trunk,
        name=spec.name,
        cache_limits=CacheLimits(max_bytes=spec.kv_bytes or None),
        drives=lambda engine, _: EngineOnLoop(engine),
        training_limits=training_limits(spec),
    )


def training_limits(spec: ModelSpec) -> TrainingLimits:
    """Return what clients may train of a model."""
    usual = TrainingLimits()
    return TrainingLimits(
        max_trainings=usual.max_trainings if spec.max_trainings is None else spec.max_trainings,
        allow_full=usual.allow_full if spec.allow_full_training is None else spec.allow_full_training,
        max_bytes=spec.training_bytes or None,
        pass_timeout_s=usual.pass_timeout_s if spec.pass_timeout_s is None else spec.pass_timeout_s,
    )


def with_index(device: torch.device) -> str:
    """Return the name of a device under which its memory is counted: `cuda` and `cuda:0` are one."""
    return f"cuda:{torch.cuda.current_device()}" if str(device) == "cuda" else str(device)


def trunk_bytes(config: PreTrainedConfig, spec: ModelSpec, device: torch.device) -> int:
    """Return the bytes of a trunk's weights, from an instance on the meta device: nothing is read or allocated.

    Raises:
        UnsupportedModelError, SplitPointError: (of splitlearn_core) as when it is loaded.
    """
    architecture = architecture_of(config)
    check_supported(config, architecture)
    points = resolve_split_points(spec.split_points, num_decoder_layers(config))
    with torch.device("meta"):
        trunk = loading_class_for(Trunk, architecture, points)(config)
    dtype = spec.dtype or (torch.float32 if device.type == "cpu" else dtype_of(config))
    return sum(p.numel() * (dtype if p.is_floating_point() else p.dtype).itemsize for p in trunk.parameters())


def dtype_of(config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype that a checkpoint says it has, float32 where it says none."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


@torch.inference_mode()
def warm_up(trunk: Trunk) -> None:
    """Bring the weights into memory, and the kernels that a prompt and a token need, so that no client waits for them.

    Weights of the checkpoint's own dtype are mapped from its file and only come when they are looked at.
    """
    for parameter in trunk.parameters():
        parameter.sum()
    cache = trunk.new_cache()
    for num_tokens in (2, 1):
        hidden_BTH = torch.zeros(1, num_tokens, trunk.hidden_size, dtype=trunk.dtype, device=trunk.device)
        trunk(hidden_BTH, past_key_values=cache)


@contextmanager
def telling_of_tensors(reporter: LoadReporter) -> Iterator[None]:
    """Report each tensor that transformers loads while the block runs, in place of its bar."""

    def hooked(_: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Iterator[Any]:
        return reported(options.get("iterable", args[0] if args else ()), reporter)

    before = transformers_logging.set_tqdm_hook(hooked)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def reported(items: Any, reporter: LoadReporter) -> Iterator[Any]:
    """Yield the items, reporting how many there were."""
    num_total = len(items)
    for num_done, item in enumerate(items):
        reporter.progress("loading weights", num_done, num_total)
        yield item
    reporter.progress("loading weights", num_total, num_total)
