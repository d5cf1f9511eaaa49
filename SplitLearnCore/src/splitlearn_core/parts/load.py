"""Loading a part of a checkpoint: only its own tensors, from only the files that hold them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from splitlearn_core.checkpoint.fingerprint import fingerprint
from splitlearn_core.checkpoint.source import Source, locate
from splitlearn_core.checkpoint.view import part_view
from splitlearn_core.checkpoint.weights import WeightIndex, needed_tensors, read_weight_index
from splitlearn_core.errors import CheckpointError, UnsupportedModelError
from splitlearn_core.parts.bottom import Bottom
from splitlearn_core.parts.classes import CutModelT, architecture_of, loading_class_for
from splitlearn_core.parts.part import Part
from splitlearn_core.parts.top import Top
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.cut_copy import Parts
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.points import resolve_split_points

PartName = Literal["bottom", "trunk", "top"]
PART_KINDS: dict[str, type[Part]] = {"bottom": Bottom, "trunk": Trunk, "top": Top}


def load_part(
    model_id: str,
    part: PartName,
    split_points: Sequence[int] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> Part:
    """Load one part of a checkpoint.

    Args:
        model_id: `"builtin"`, a local directory in Hugging Face format, or a hub id.
        part: `"bottom"`, `"trunk"` or `"top"`.
        split_points: `(a, b)` with `0 < a < b < n`; None for the default.
        device: where the weights go; None for the CPU.
        dtype: dtype of the weights; None for float32 on the CPU and the checkpoint's own elsewhere.
        attn_implementation: as in transformers (`"sdpa"`, `"eager"`, …); None for what the model prefers.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: no such checkpoint, or its weights are missing or truncated.
        SplitPointError: cut points out of order or out of range.
        UnsupportedModelError: the model cannot be cut exactly.
    """
    if part not in PART_KINDS:
        raise ValueError(f"part must be one of {', '.join(map(repr, PART_KINDS))}; got {part!r}")
    return load_piece(
        PART_KINDS[part],
        locate(model_id, revision),
        split_points,
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
    )


def load_split_model(
    model_id: str = "builtin",
    split_points: Sequence[int] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> Parts:
    """Load all three parts of a checkpoint into this process; arguments and errors as in `load_part`."""
    source = locate(model_id, revision)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "attn_implementation": attn_implementation}
    return Parts(
        load_piece(Bottom, source, split_points, **options),
        load_piece(Trunk, source, split_points, **options),
        load_piece(Top, source, split_points, **options),
    )


def load_piece(
    kind: type[CutModelT],
    source: Source,
    split_points: Sequence[int] | None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> CutModelT:
    """Load any piece of a located checkpoint; arguments and errors as in `load_part`."""
    config = read_config(source)
    architecture = architecture_of(config)
    num_layers = num_decoder_layers(config)
    points = resolve_split_points(split_points, num_layers)
    index = read_weight_index(source)
    tensors = tensors_of(index, architecture, config, kind.cut_for(points, num_layers))
    device = torch.device(device or "cpu")
    with part_view(source, index, tensors) as directory:
        piece = read_weights(
            loading_class_for(kind, architecture, points),
            directory,
            config=config,
            dtype=dtype or (torch.float32 if device.type == "cpu" else "auto"),
            attn_implementation=attn_implementation,
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
    return config
