"""Which answers are those to a message, and which are second answers to the one before it."""

import pytest

from splitlearn_comm import CommError
from splitlearn_comm.client.awaited import Awaited, is_stale
from splitlearn_comm.framing.steps import Answer, Opened
from splitlearn_comm.messages import KVEntries, SessionState

DONE, OPENED = Answer(3, 7), Answer(3, 7, opened=Opened(1000, 100))
STATE = Answer(3, 7, state=SessionState(KVEntries((), 7), 1))
EARLIER = SessionState(KVEntries((), 5), 1)


@pytest.mark.parametrize(
    ("awaited", "step_id", "taken", "passed_over"),
    [
        (Awaited.STEP, 3, [DONE], [OPENED, Answer(2, 5)]),
        (Awaited.STEP, 4, [Answer(4, 8)], [OPENED, DONE, STATE]),
        (Awaited.OPENED, 0, [OPENED, DONE], []),
        (Awaited.STATE, 3, [STATE], [OPENED, DONE, Answer(2, 5, state=EARLIER)]),
        (Awaited.IMPORTED, 3, [DONE], [OPENED]),
    ],
)
def test_an_answer_is_taken_by_the_message_that_waits_for_it(
    awaited: Awaited, step_id: int, taken: list[Answer], passed_over: list[Answer]
) -> None:
    assert not any(is_stale(answer, step_id, awaited) for answer in taken)
    assert all(is_stale(answer, step_id, awaited) for answer in passed_over)


@pytest.mark.parametrize("awaited", Awaited)
def test_a_refusal_answers_any_message_but_one_behind_its_own(awaited: Awaited) -> None:
    error = CommError("no")
    assert [is_stale(Answer(number, 0, error=error), 3, awaited) for number in (0, 2, 3)] == [False, True, False]
