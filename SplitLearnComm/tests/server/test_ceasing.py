"""Stateless calls while their server stops."""

import pytest

from splitlearn_comm.server.ceasing import QUIET_S, Ceasing


def test_where_none_came_none_is_waited_for() -> None:
    assert Ceasing().wait_s(5.0, until_s=7.0) == 0.0


def test_they_are_waited_for_until_none_has_come_for_a_while() -> None:
    ceasing = Ceasing()
    for now_s in (5.0, 5.0 + QUIET_S / 2):
        ceasing.called(now_s)
        assert ceasing.wait_s(now_s, until_s=7.0) == pytest.approx(QUIET_S)
    assert ceasing.wait_s(5.0 + QUIET_S, until_s=7.0) == pytest.approx(QUIET_S / 2)
    assert ceasing.wait_s(5.0 + QUIET_S * 1.5, until_s=7.0) == 0.0


def test_those_that_never_cease_are_waited_for_no_longer_than_was_said() -> None:
    ceasing = Ceasing()
    ceasing.called(7.0 - QUIET_S / 4)
    assert ceasing.wait_s(7.0 - QUIET_S / 4, until_s=7.0) == pytest.approx(QUIET_S / 4)
    ceasing.called(7.0)
    assert ceasing.wait_s(7.0, until_s=7.0) == 0.0
