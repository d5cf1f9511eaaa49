"""What a process says and how it ended, in words."""

import logging

import pytest

from splitlearn_manager.runtime.process_exit import Output, described


def test_lines_are_logged_at_their_own_level_and_the_last_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    output = Output("tiny version 1")
    with caplog.at_level(logging.INFO, "splitlearn_manager.models"):
        for piece in (b"one\nWARNING a: tw", b"o\n\nthree\r\nERROR b", b": four\nunfini"):
            output.feed(piece)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "tiny version 1: one"),
        ("WARNING", "tiny version 1: WARNING a: two"),
        ("INFO", "tiny version 1: three"),
        ("ERROR", "tiny version 1: ERROR b: four"),
    ]
    assert output.last_words() == ("WARNING a: two", "three", "ERROR b: four")


def test_a_line_without_end_takes_no_memory_without_end() -> None:
    output = Output("tiny version 1")
    for _ in range(100):
        output.feed(b"x" * 100_000)
    output.feed(b"\n")
    (line,) = output.last_words()
    assert len(line) == 502
    assert len(output._unfinished) == 0


@pytest.mark.parametrize(
    ("returncode", "words", "expected"),
    [
        (0, ("bye",), "ended"),
        (3, (), "ended with status 3"),
        (1, ("one", "two"), "ended with status 1, last saying: one | two"),
        (-9, ("one",), "was killed by signal 9 (SIGKILL), last saying: one"),
        (-63, (), "was killed by signal 63 (of no name)"),
    ],
)
def test_how_it_ended_is_one_line(returncode: int, words: tuple[str, ...], expected: str) -> None:
    assert described(returncode, words) == expected
