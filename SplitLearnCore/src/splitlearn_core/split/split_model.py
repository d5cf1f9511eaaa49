"""Splitting a model that is already in memory; the parts share its weights."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from splitlearn_core.errors import UnsupportedModelError
from splitlearn_core.parts.bottom import Bottom
from splitlearn_core.parts.classes import CutModelT, class_for
from splitlearn_core.parts.part import CutModel
from splitlearn_core.parts.top import Top
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.points import SplitPoints, resolve_split_points


class Parts(NamedTuple):
    """The three parts of one model."""

    bottom: Bottom
    trunk: Trunk
    top: Top


def split_model(model: PreTrainedModel, split_points: Sequence[int] | None = None) -> Parts:
    """Cut a model in memory into three parts that share its weights; the model itself is not changed.

    Args:
        model: a causal language model of transformers.
        split_points: `(a, b)` with `0 < a < b < n`; None for the default.

    Raises:
        SplitPointError: cut points out of order or out of range.
        UnsupportedModelError: the model cannot be cut exactly.
    """
    if isinstance(model, CutModel) or not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a whole causal language model of transformers; got {type(model).__module__}."
            f"{type(model).__name__}"
        )
    points = resolve_split_points(split_points, num_decoder_layers(model.config))
    return Parts(cut_copy(Bottom, model, points), cut_copy(Trunk, model, points), cut_copy(Top, model, points))


def cut_copy(kind: type[CutModelT], model: PreTrainedModel, points: SplitPoints) -> CutModelT:
    """Copy the modules of a model, but none of its tensors, and cut the copy."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    piece: Any = copy.deepcopy(model, shared)
    piece.__class__ = class_for(kind, type(model))
    piece.become_cut(points, num_decoder_layers(model.config))
    assert isinstance(piece, kind)
    return piece
