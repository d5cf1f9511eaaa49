"""Loading one piece of a located checkpoint: only its own tensors, from only the files that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from splitlearn_core.checkpoint.fingerprint import fingerprint
from splitlearn_core.checkpoint.source import Source
from splitlearn_core.checkpoint.view import part_view
from splitlearn_core.checkpoint.weights import WeightIndex, needed_tensors, read_weight_index
from splitlearn_core.errors import CheckpointError, UnsupportedModelError
from splitlearn_core.parts.classes import CutModelT, architecture_of, causal_config, loading_class_for
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.points import resolve_split_points
from splitlearn_core.split.support import check_supported


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Where a model is cut, and how its parts are loaded."""

    split_points: Sequence[int] | None = None
    """`(a, b)` with `0 < a < b < n`; None for two layers at each end, one below six layers."""
    device: torch.device | str | None = None
    """Where the weights go; None for the CPU."""
    dtype: torch.dtype | None = None
    """Dtype of the weights; None for float32 on the CPU and the checkpoint's own elsewhere."""
    attn_implementation: str | dict[str, str] | None = None
    """As in transformers (`"sdpa"`, `"eager"`, …, or one a sub-configuration); None for what the model prefers."""


def load_piece(kind: type[CutModelT], source: Source, split: SplitConfig) -> CutModelT:
    """Load any piece of a located checkpoint.

    Raises:
        CheckpointError: weights are missing or truncated.
        SplitPointError: cut points out of order or out of range.
        UnsupportedModelError: the model cannot be cut exactly.
    """
    config = read_config(source)
    architecture = architecture_of(config)
    check_supported(config, architecture)
    num_layers = num_decoder_layers(config)
    points = resolve_split_points(split.split_points, num_layers)
    index = read_weight_index(source)
    tensors = tensors_of(index, architecture, config, kind.cut_for(points, num_layers))
    device = torch.device(split.device or "cpu")
    with part_view(source, index, tensors) as directory:
        piece = read_weights(
            loading_class_for(kind, architecture, points),
            directory,
            config=config,
            dtype=split.dtype or (torch.float32 if device.type == "cpu" else "auto"),
            attn_implementation=split.attn_implementation,
        )
    piece.fingerprint = fingerprint(source, index)
    torch.nn.Module.to(piece, device)
    return piece


def tensors_of(
    index: WeightIndex, architecture: type[PreTrainedModel], config: PreTrainedConfig, cut: Cut
) -> set[str] | None:
    """Return the names of a piece's tensors in a sharded checkpoint; None for a single file."""
    if index.file_of_tensor is None:
        return None
    with torch.device("meta"):
        whole = architecture(config)
    return needed_tensors(index.file_of_tensor, whole, cut)


def read_weights(loading_class: type[CutModelT], directory: Path, **options: Any) -> CutModelT:
    """Call `from_pretrained` and refuse what it would only warn of.

    Raises:
        CheckpointError: the weights cannot be read, or some are missing.
    """
    try:
        loaded: Any = loading_class.from_pretrained(directory, output_loading_info=True, **options)
    except SafetensorError as error:
        raise CheckpointError(f"the weights cannot be read: {error}") from error
    piece, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers.
        raise CheckpointError(f"the checkpoint lacks {len(missing)} tensors of this part: {', '.join(missing[:3])}")
    assert isinstance(piece, loading_class)
    return piece


def read_config(source: Source) -> PreTrainedConfig:
    """Read the configuration of a checkpoint.

    Raises:
        UnsupportedModelError: this version of transformers does not know the model type.
    """
    try:
        config = AutoConfig.from_pretrained(source.directory)
    except (ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UnsupportedModelError(f"{source.model_id} cannot be cut: {first_line}") from error
    assert isinstance(config, PreTrainedConfig)
    return causal_config(config)
