"""Splitting a model that is already in memory; the parts share its weights."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from splitlearn_core.errors import UnsupportedModelError
from splitlearn_core.parts.part import CutModel
from splitlearn_core.split.cut_copy import SplitResult, cut_apart
from splitlearn_core.split.layers import num_decoder_layers
from splitlearn_core.split.points import resolve_split_points
from splitlearn_core.split.support import check_supported


def split_model(model: PreTrainedModel, split_points: Sequence[int] | None = None) -> SplitResult:
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
    check_supported(model.config, type(model))
    points = resolve_split_points(split_points, num_decoder_layers(model.config))
    return cut_apart(model, points)
