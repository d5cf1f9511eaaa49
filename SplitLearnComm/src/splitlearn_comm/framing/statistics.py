"""The question for figures and its answers, as bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.errors import InvalidRequestError
from splitlearn_comm.framing.fields import parse
from splitlearn_comm.samples import Sample, StatisticsReading

SHORTEST_INTERVAL_S: Final = 1.0
LONGEST_INTERVAL_S: Final = 60.0


def encode_watch(interval_s: float) -> bytes:
    """The bytes that ask for figures, and again after each interval."""
    return pb.WatchStatisticsRequest(interval_s=interval_s).SerializeToString()


def decode_watch(data: bytes) -> float:
    """Seconds between two answers.

    Raises:
        InvalidRequestError: They are out of range, or the bytes are malformed.
    """
    interval_s = parse(pb.WatchStatisticsRequest, data).interval_s
    if not SHORTEST_INTERVAL_S <= interval_s <= LONGEST_INTERVAL_S:
        raise InvalidRequestError(
            f"statistics come every {SHORTEST_INTERVAL_S:g} to {LONGEST_INTERVAL_S:g} s; came interval_s={interval_s:g}"
        )
    return interval_s


def encode_statistics(time_s: float, samples: Iterable[Sample]) -> bytes:
    """The bytes of all figures at one moment."""
    found = [pb.StatisticsSample(name=s.name, labels=s.labels, value=s.value) for s in samples]
    return pb.Statistics(time_s=time_s, samples=found).SerializeToString()


def decode_statistics(data: bytes) -> StatisticsReading:
    """All figures at one moment. Raises `InvalidRequestError` if the bytes are malformed."""
    message = parse(pb.Statistics, data)
    samples = (Sample(s.name, dict(s.labels), s.value) for s in message.samples)
    return StatisticsReading(time_s=message.time_s, samples=tuple(samples))
