"""Where a model is cut by default."""

import pytest

from splitlearn_core import SplitPointError, SplitPoints, default_split_points
from splitlearn_core.split.points import resolve_split_points


@pytest.mark.parametrize(("num_layers", "points"), [(3, (1, 2)), (5, (1, 4)), (6, (2, 4)), (12, (2, 10))])
def test_the_default_leaves_two_layers_at_each_end_or_one(num_layers: int, points: tuple[int, int]) -> None:
    assert default_split_points(num_layers) == SplitPoints(*points)
    assert resolve_split_points(None, num_layers) == points


@pytest.mark.parametrize("num_layers", [0, 1, 2])
def test_fewer_than_three_layers_cannot_be_split(num_layers: int) -> None:
    with pytest.raises(SplitPointError, match="at least one layer each"):
        default_split_points(num_layers)
    with pytest.raises(SplitPointError):
        resolve_split_points((1, 2), num_layers)


def test_a_list_is_as_good_as_a_tuple() -> None:
    assert resolve_split_points([2, 10], 12) == SplitPoints(2, 10)
