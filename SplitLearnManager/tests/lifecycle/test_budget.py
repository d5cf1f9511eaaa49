"""Memory for models: never over its limit, refused with numbers, and nobody unloaded without need."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlearn_manager.errors import BudgetExceededError
from splitlearn_manager.lifecycle.budget import Budget, Footprint, Idle, amount

GIB = 1 << 30


def footprint(weights_bytes: int, kv_bytes: int = 0, activation_bytes: int = 0, training_bytes: int = 0) -> Footprint:
    return Footprint(
        weights_bytes=weights_bytes,
        kv_bytes=kv_bytes,
        activation_bytes=activation_bytes,
        training_bytes=training_bytes,
    )


def idle(**last_used: float) -> list[Idle]:
    return [Idle(label=label, last_used=when) for label, when in last_used.items()]


def test_weights_caches_activations_and_trainings_count() -> None:
    budget = Budget({"cpu": 100})
    assert budget.admit("a", "cpu", footprint(50, 30, 15, 5)) == ()
    assert budget.booked_bytes("cpu") == 100
    with pytest.raises(BudgetExceededError):
        budget.admit("b", "cpu", footprint(0, 1))
    budget.free("a")
    budget.free("a")
    assert budget.booked_bytes("cpu") == 0
    assert budget.admit("b", "cpu", footprint(100)) == ()


def test_a_refusal_has_the_numbers_and_says_what_to_do() -> None:
    budget = Budget({"cpu": 4 * GIB})
    budget.admit("big version 1", "cpu", footprint(3 * GIB))
    with pytest.raises(BudgetExceededError) as caught:
        budget.admit("new version 2", "cpu", footprint(GIB, GIB // 2, 100, 7))
    assert str(caught.value) == (
        "no room for new version 2: it needs 1.5 GiB (weights 1.0 GiB, caches 512.0 MiB, activations 100 bytes, "
        "trainings 7 bytes) on cpu, where 1.0 GiB of 4.0 GiB are free beside big version 1 3.0 GiB; unload a model, "
        "set less aside for its caches or trainings, or raise memory_bytes"
    )
    assert caught.value.code.name == "RESOURCE_EXHAUSTED"


def test_each_device_has_its_own_and_one_without_a_limit_has_enough() -> None:
    budget = Budget({"cpu": 10})
    budget.admit("a", "cpu", footprint(10))
    assert budget.admit("b", "cuda:0", footprint(10**15)) == ()
    with pytest.raises(BudgetExceededError, match="those without sessions would not be enough"):
        budget.admit("c", "cpu", footprint(1), idle(b=0))
    assert repr(budget) == "<budget cpu: 10 bytes of 10 bytes, cuda:0: 909.5 TiB of no limit>"


def test_the_least_recently_used_make_room_and_no_more_than_needed() -> None:
    budget = Budget({"cpu": 100})
    for label in "abcd":
        budget.admit(label, "cpu", footprint(25))
    assert budget.admit("new", "cpu", footprint(40), idle(a=3, b=1, c=2)) == ("b", "c")
    assert budget.booked_bytes("cpu") == 90
    assert budget.footprint_of("b") is None
    assert budget.footprint_of("a") == footprint(25)


def test_a_small_one_is_spared_when_a_large_one_has_to_go_anyway() -> None:
    budget = Budget({"cpu": 100})
    budget.admit("small", "cpu", footprint(10))
    budget.admit("large", "cpu", footprint(90))
    assert budget.admit("new", "cpu", footprint(80), idle(small=1, large=2)) == ("large",)


SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@given(SIZES, st.integers(0, 120), st.data())
def test_it_is_never_over_its_limit_and_unloads_only_what_it_may_and_must(
    sizes: list[int], wanted: int, data: st.DataObject
) -> None:
    limit = sum(sizes) + data.draw(st.integers(0, 20))
    budget = Budget({"cpu": limit})
    for number, size in enumerate(sizes):
        budget.admit(str(number), "cpu", footprint(size))
    may_go = [str(number) for number in data.draw(st.sets(st.integers(0, len(sizes) - 1)))]
    ages = idle(**{label: data.draw(st.floats(0, 10)) for label in may_go})
    reclaimable = sum(sizes[int(label)] for label in may_go)
    try:
        gone = budget.admit("new", "cpu", footprint(wanted), ages)
    except BudgetExceededError:
        assert wanted > limit - sum(sizes) + reclaimable
        assert budget.booked_bytes("cpu") == sum(sizes)
        return
    assert set(gone) <= set(may_go)
    assert budget.booked_bytes("cpu") <= limit
    for label in gone:
        assert budget.booked_bytes("cpu") + sizes[int(label)] > limit, "unloaded without need"


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), (5 << 40, "5.0 TiB")],
)
def test_amounts_are_for_people(num_bytes: int, shown: str) -> None:
    assert amount(num_bytes) == shown
