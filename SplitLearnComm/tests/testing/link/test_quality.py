import math

import pytest

from splitlearn_comm.testing import LinkQuality


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_s": -0.1},
        {"latency_s": math.inf},
        {"latency_s": math.nan},
        {"jitter_s": -1.0},
        {"bytes_per_s": 0},
        {"bytes_per_s": math.nan},
    ],
)
def test_what_no_link_has_is_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name} must be .*, came .*use stall\(\)"):
        LinkQuality(**wrong)
