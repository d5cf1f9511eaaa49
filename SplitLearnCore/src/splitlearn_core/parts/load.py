"""Loading the parts of a checkpoint."""

from collections.abc import Sequence
from typing import Literal

import torch

from splitlearn_core.checkpoint.source import Source, locate
from splitlearn_core.parts.bottom import Bottom
from splitlearn_core.parts.load_piece import SplitConfig, load_piece
from splitlearn_core.parts.part import Part
from splitlearn_core.parts.top import Top
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.cut_copy import SplitResult

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
    split = SplitConfig(split_points=split_points, device=device, dtype=dtype, attn_implementation=attn_implementation)
    return load_piece(PART_KINDS[part], locate(model_id, revision), split)


def load_split_model(
    model_id: str = "builtin",
    split_points: Sequence[int] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> SplitResult:
    """Load all three parts of a checkpoint into this process; arguments and errors as in `load_part`."""
    split = SplitConfig(split_points=split_points, device=device, dtype=dtype, attn_implementation=attn_implementation)
    return load_parts(locate(model_id, revision), split)


def load_parts(source: Source, split: SplitConfig) -> SplitResult:
    """Load all three parts of a located checkpoint into this process; errors as in `load_part`."""
    return SplitResult(
        load_piece(Bottom, source, split), load_piece(Trunk, source, split), load_piece(Top, source, split)
    )
