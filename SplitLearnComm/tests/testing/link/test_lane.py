import pytest

from splitlearn_comm.testing import LinkQuality
from splitlearn_comm.testing.link.lane import MAX_PIECE_BYTES, Lane


def lane(quality: LinkQuality, draw: float = 0.0) -> Lane:
    return Lane(quality, lambda: draw)


def test_a_perfect_link_takes_no_time() -> None:
    passage = lane(LinkQuality()).send(10**9, now_s=5.0)
    assert (passage.sent_at_s, passage.arrives_at_s) == (5.0, 5.0)


def test_latency_delays_each_piece_and_holds_up_none() -> None:
    long = lane(LinkQuality(latency_s=2.0))
    assert [long.send(100, now_s).arrives_at_s for now_s in (0.0, 0.5, 0.5)] == [2.0, 2.5, 2.5]


def test_bandwidth_is_shared_by_what_is_sent_one_after_the_other() -> None:
    narrow = lane(LinkQuality(bytes_per_s=100, latency_s=1.0))
    first, second = narrow.send(50, now_s=0.0), narrow.send(100, now_s=0.1)
    assert (first.sent_at_s, second.sent_at_s) == (0.5, 1.5)
    assert (first.arrives_at_s, second.arrives_at_s) == (1.5, 2.5)


def test_a_pause_is_not_saved_up() -> None:
    narrow = lane(LinkQuality(bytes_per_s=100))
    narrow.send(100, now_s=0.0)
    assert narrow.send(100, now_s=50.0).sent_at_s == 51.0


def test_jitter_is_added_to_the_latency() -> None:
    assert lane(LinkQuality(latency_s=1.0, jitter_s=0.5), draw=0.5).send(1, now_s=0.0).arrives_at_s == 1.25


def test_a_change_is_for_what_is_sent_from_then_on() -> None:
    changed = lane(LinkQuality(bytes_per_s=100))
    changed.send(100, now_s=0.0)
    changed.quality = LinkQuality(bytes_per_s=1000)
    assert changed.send(100, now_s=0.0).sent_at_s == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("bytes_per_s", "piece_bytes"), [(1.0, 1), (1e4, 100), (1e6, 10_000), (float("inf"), MAX_PIECE_BYTES)]
)
def test_a_piece_takes_ten_milliseconds_at_most(bytes_per_s: float, piece_bytes: int) -> None:
    assert lane(LinkQuality(bytes_per_s=bytes_per_s)).piece_bytes == piece_bytes
