"""The words of the command line for what the packages say: each phrase is still said, and none is left over."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitlearn.cli.wording import WORDS, in_options

ROOT = Path(__file__).resolve().parents[1]
WORDING = ROOT / "SplitLearnCore/src/splitlearn/cli/wording.py"


def texts_of(path: Path) -> Iterator[str]:
    """Every text in a module, with `{}` where it puts in a value."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


@pytest.fixture(scope="module")
def said() -> list[str]:
    modules = [path for path in ROOT.glob("SplitLearn*/src/**/*.py") if path != WORDING]
    return [text for path in modules for text in texts_of(path)]


@pytest.mark.parametrize("phrase", WORDS)
def test_each_phrase_is_still_said(phrase: str, said: list[str]) -> None:
    assert any(phrase in text for text in said)


@pytest.mark.parametrize("phrase", WORDS)
def test_no_phrase_is_changed_by_another(phrase: str) -> None:
    assert in_options(phrase) == WORDS[phrase]


def test_a_message_without_arguments_stays_what_it_is() -> None:
    assert in_options("device 'cuda:9' is not there") == "device 'cuda:9' is not there"
