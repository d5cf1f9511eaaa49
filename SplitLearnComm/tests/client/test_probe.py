import math
from collections.abc import Callable

import pytest

from splitlearn_comm.client.probe import Echo, measure_bandwidth


def probed(seconds: Callable[[int], float], ways: int = 2) -> tuple[float, int, float]:
    """The bandwidth measured where a message takes so long there and back; bytes sent and got back; seconds spent."""
    probe = measure_bandwidth()
    num_bytes, spent_s = 0, 0.0
    try:
        size = next(probe)
        while True:
            took_s = seconds(2 * size)
            num_bytes, spent_s = num_bytes + 2 * size, spent_s + took_s
            size = probe.send(Echo(took_s, ways * size))
    except StopIteration as end:
        return end.value, num_bytes, spent_s


@pytest.mark.parametrize("bandwidth", [8e3, 1e5, 1e6, 1e7, 1e8, 1e10])
@pytest.mark.parametrize("round_trip_s", [0.0003, 0.1])
def test_the_bandwidth_is_found_with_a_mebibyte_in_a_second(bandwidth: float, round_trip_s: float) -> None:
    measured, num_bytes, spent_s = probed(lambda num_bytes: round_trip_s + num_bytes / bandwidth)
    assert measured == pytest.approx(bandwidth, rel=0.01)
    assert num_bytes < 1 << 20
    assert spent_s < 1.1 + 3 * round_trip_s


def test_a_slow_link_is_asked_for_little() -> None:
    assert probed(lambda num_bytes: num_bytes / 8e3)[1] == 2 * 4096


def test_what_a_busy_machine_adds_now_and_then_does_not_count() -> None:
    late = iter([0.03, 0, 0, 0.03, 0.03, 0, 0, 0.03])
    measured, _, _ = probed(lambda num_bytes: 0.001 + num_bytes / 1e7 + next(late))
    assert measured == pytest.approx(1e7, rel=0.01)


def test_no_difference_is_no_bound() -> None:
    assert probed(lambda num_bytes: 0.001)[0] == math.inf


def test_an_answer_that_leaves_the_padding_out_counts_one_way() -> None:
    assert probed(lambda num_bytes: 0.001 + num_bytes / 2 / 1e6, ways=1)[0] == pytest.approx(1e6, rel=0.01)


def test_where_the_server_takes_no_more_what_was_found_has_to_do() -> None:
    probe = measure_bandwidth()
    size, measured = next(probe), math.nan
    try:
        while True:
            size = probe.send(None if size > 4096 else Echo(0.001 + 2 * size / 1e6, 2 * size))
    except StopIteration as end:
        measured = end.value
    assert measured == pytest.approx(1e6, rel=0.01)
