"""Cutting copies off a model in memory: its modules are copied, its tensors are shared."""

import copy
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from splitlearn_core.parts.bottom import Bottom
from splitlearn_core.parts.classes import CutModelT, class_for
from splitlearn_core.parts.top import Top
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.points import SplitPoints


class SplitResult(NamedTuple):
    """The three parts of one model."""

    bottom: Bottom
    trunk: Trunk
    top: Top


def cut_apart(model: PreTrainedModel, points: SplitPoints) -> SplitResult:
    """Cut a model into its three parts, whether or not its type is known to be exact when cut."""
    return SplitResult(cut_copy(Bottom, model, points), cut_copy(Trunk, model, points), cut_copy(Top, model, points))


def cut_copy(kind: type[CutModelT], model: PreTrainedModel, points: SplitPoints) -> CutModelT:
    """Copy the modules of a model, but none of its tensors, and cut the copy."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    piece: Any = copy.deepcopy(model, shared)
    piece.__class__ = class_for(kind, type(model))
    piece.become_cut(points, num_decoder_layers(model.config))
    assert isinstance(piece, kind)
    return piece
