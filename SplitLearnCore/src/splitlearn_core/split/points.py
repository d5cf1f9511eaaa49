"""Where a model is cut."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from splitlearn_core.errors import SplitPointError

DEEP_MODEL_LAYERS = 6
"""From this many layers on the default leaves two of them at each end, below it one."""

MIN_LAYERS = 3
"""Each of the three parts needs a layer."""


class SplitPoints(NamedTuple):
    """Cut points `(a, b)`: Bottom holds layers `[0, a)`, Trunk `[a, b)`, Top `[b, n)`."""

    bottom_end: int
    trunk_end: int


def default_split_points(num_layers: int) -> SplitPoints:
    """Two layers at each end, one below six layers.

    Raises:
        SplitPointError: the model has fewer than three layers.
    """
    if num_layers < MIN_LAYERS:
        raise SplitPointError(
            f"a model of {num_layers} layers cannot be split: Bottom, Trunk and Top need at least one layer each"
        )
    at_each_end = 2 if num_layers >= DEEP_MODEL_LAYERS else 1
    return SplitPoints(at_each_end, num_layers - at_each_end)


def resolve_split_points(split_points: Sequence[int] | None, num_layers: int) -> SplitPoints:
    """Check the cut points of a user, or choose the default.

    Args:
        split_points: two integers `(a, b)` with `0 < a < b < num_layers`, or None for the default.
        num_layers: number of decoder layers of the whole model.

    Raises:
        SplitPointError: not two integers, out of order, or out of range.
    """
    if split_points is None:
        return default_split_points(num_layers)
    wanted = f"two integers (a, b) with 0 < a < b < {num_layers}, the number of layers of this model"
    points = tuple(split_points) if isinstance(split_points, Iterable) else ()
    if len(points) != 2 or not all(isinstance(p, int) and not isinstance(p, bool) for p in points):
        raise SplitPointError(f"split_points must be {wanted}; got {split_points!r}")
    if not 0 < points[0] < points[1] < num_layers:
        default = f"; {tuple(default_split_points(num_layers))} is the default" if num_layers >= MIN_LAYERS else ""
        raise SplitPointError(f"split_points must be {wanted}; got {points}{default}")
    return SplitPoints(*points)
