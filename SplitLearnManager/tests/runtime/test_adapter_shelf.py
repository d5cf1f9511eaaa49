"""How many adapters are kept, how large, for how long."""

from typing import Any

import pytest

from splitlearn_comm import ResourceExhaustedError
from splitlearn_manager.runtime.adapter_shelf import AdapterLimits, AdapterShelf


def shelf(**limits: Any) -> AdapterShelf[str]:
    return AdapterShelf(AdapterLimits(**limits))


def test_each_client_finds_its_own() -> None:
    kept = shelf()
    kept.put("alice", "mine", "hers", 1, 0.0)
    kept.put("bob", "mine", "his", 1, 0.0)
    assert (kept.of("alice", "mine", 0.0), kept.of("bob", "mine", 0.0)) == ("hers", "his")
    assert kept.remove("alice", "mine") == "hers"
    assert (kept.of("alice", "mine", 0.0), kept.of("bob", "mine", 0.0)) == (None, "his")
    assert kept.remove("alice", "mine") is None


@pytest.mark.parametrize(
    ("limits", "refused", "taken"),
    [
        ({"max_per_client": 2}, ("alice", 1), ("bob", 1)),
        ({"max_bytes_per_client": 20}, ("alice", 1), ("bob", 20)),
        ({"max_in_all": 2}, ("bob", 1), None),
        ({"max_bytes_in_all": 25}, ("bob", 6), ("bob", 5)),
    ],
)
def test_there_is_room_for_so_many(
    limits: dict[str, int], refused: tuple[str, int], taken: tuple[str, int] | None
) -> None:
    kept = shelf(**limits)
    kept.put("alice", "first", "a", 10, 0.0)
    kept.put("alice", "second", "b", 10, 0.0)
    with pytest.raises(ResourceExhaustedError, match="free some that are needed no more"):
        kept.put(refused[0], "third", "c", refused[1], 0.0)
    if taken is not None:
        kept.put(taken[0], "third", "c", taken[1], 0.0)
    kept.put("alice", "first", "anew", 10, 0.0)  # in place of another of the same name there is room
    assert kept.of("alice", "first", 0.0) == "anew"
    assert len(kept) == (2 if taken is None else 3)


def test_what_nobody_uses_is_forgotten() -> None:
    kept = shelf(idle_timeout_s=10.0)
    kept.put("alice", "used", "a", 1, 0.0)
    kept.put("alice", "idle", "b", 1, 0.0)
    assert kept.of("alice", "used", 6.0) == "a"
    assert kept.expire(10.0) == []
    assert kept.expire(11.0) == ["b"]
    assert kept.of("alice", "idle", 11.0) is None
    assert kept.expire(21.5) == ["a"]
    assert len(kept) == 0
