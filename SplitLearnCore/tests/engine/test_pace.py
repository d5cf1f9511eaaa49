"""What is learnt from the clock."""

import pytest

from splitlearn_core.engine import EngineLimits
from splitlearn_core.engine.pace import Pace, Rhythm

LIMITS = EngineLimits(max_tokens=400, min_chunk_tokens=8)


def settled(token_s: float = 0.002, joined_s: float = 0.04) -> Pace:
    pace = Pace(LIMITS)
    for _ in range(20):
        pace.prompt_ended(20, 20 * token_s)
        pace.joined_ended(joined_s, has_prompts=True)
    return pace


class TestChunks:
    def test_a_prompt_without_others_runs_as_far_as_a_forward_goes(self) -> None:
        assert settled().chunk_size(is_alone=True) == 400

    def test_among_others_a_chunk_costs_what_their_steps_cost(self) -> None:
        assert settled(token_s=0.002, joined_s=0.04).chunk_size(is_alone=False) == pytest.approx(20, abs=1)

    def test_it_costs_what_all_steps_cost_that_it_had_to_wait_for(self) -> None:
        pace = settled()
        pace.joined_ended(0.04, has_prompts=True)
        assert pace.chunk_size(is_alone=False) == pytest.approx(40, abs=1)

    def test_steps_that_no_prompt_waited_for_do_not_count(self) -> None:
        pace = settled()
        for _ in range(100):
            pace.joined_ended(0.04, has_prompts=False)
        assert pace.chunk_size(is_alone=False) == pytest.approx(20, abs=1)

    def test_it_follows_what_is_measured(self) -> None:
        pace = settled(token_s=0.002)
        for _ in range(20):
            pace.prompt_ended(20, 20 * 0.001)
            pace.joined_ended(0.04, has_prompts=True)
        assert pace.chunk_size(is_alone=False) == pytest.approx(40, abs=1)

    def test_one_forward_that_was_held_up_makes_no_chunk_longer(self) -> None:
        pace = settled()
        pace.prompt_ended(20, 20 * 0.002)
        pace.joined_ended(0.4, has_prompts=True)
        assert pace.chunk_size(is_alone=False) == pytest.approx(20, abs=1)

    def test_it_is_never_too_small_to_be_worth_it_nor_too_large(self) -> None:
        assert settled(token_s=1.0).chunk_size(is_alone=False) == 8
        assert settled(token_s=1e-6).chunk_size(is_alone=False) == 400

    def test_before_anything_is_measured_it_is_a_small_part(self) -> None:
        assert Pace(LIMITS).chunk_size(is_alone=False) == 50

    def test_the_first_of_all_among_steps_that_were_measured_is_the_smallest(self) -> None:
        pace = Pace(LIMITS)
        pace.joined_ended(0.04, has_prompts=True)
        assert pace.chunk_size(is_alone=False) == 8


class TestRhythm:
    def test_a_session_is_expected_after_its_usual_pause(self) -> None:
        rhythm = Rhythm()
        assert rhythm.expected_s() is rhythm.overdue_s() is None
        rhythm.came(0.0)
        rhythm.ended(1.0)
        assert rhythm.expected_s() is None
        rhythm.came(1.5)
        rhythm.ended(2.0)
        assert rhythm.expected_s() == 2.5
        assert rhythm.overdue_s() == pytest.approx(3.001)

    def test_patience_is_a_share_of_a_forward(self) -> None:
        assert Pace(LIMITS).patience_s() == 0
        assert settled(joined_s=0.04).patience_s() == pytest.approx(0.15 * 0.04)
