"""Where a checkpoint is looked for, and what is said when it is not right."""

import errno
import logging
import socket
from pathlib import Path

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from splitlearn_core import CheckpointError
from splitlearn_core.checkpoint.fingerprint import mismatch
from splitlearn_core.checkpoint.hub import chain, is_nobody_there
from splitlearn_core.checkpoint.source import Source, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"model_type": ', "is no JSON"), ("", "is no JSON"), ("[1, 2]", "expected a JSON object, got list")],
)
def test_a_configuration_that_cannot_be_read(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        locate(str(tmp_path))
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("kind", ["builtin", "directory"])
def test_a_revision_of_what_is_not_on_the_hub_is_ignored_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    model_id = "builtin" if kind == "builtin" else str(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert locate(model_id, "main").commit is None
        assert [record.message for record in caplog.records] == [
            f"revision 'main' is ignored: {model_id} is not on the hub but here"
        ]
        caplog.clear()
        locate(model_id)
        assert caplog.records == []


def test_a_mismatch_names_the_commit_and_what_to_do() -> None:
    source = Source(model_id="gpt2", directory=Path(), commit=COMMIT)
    said = mismatch(source, "a" * 64, "b" * 64)
    assert f"its fingerprint is bbbbbbbbbbbb…, that of gpt2 at commit {COMMIT} is aaaaaaaaaaaa…" in said
    assert "the same revision= (splitlearn serve --revision)" in said


def test_a_mismatch_of_a_directory_says_nothing_of_revisions() -> None:
    said = mismatch(Source(model_id="./here", directory=Path()), "a" * 64, "b" * 64)
    assert "that of ./here is aaaaaaaaaaaa…" in said
    assert said.endswith("to the last bit")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True),
        (socket.gaierror(socket.EAI_NONAME, "unknown name"), True),
        (OSError(errno.ENETUNREACH, "no network"), True),
        (OfflineModeIsEnabled("told to"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (TimeoutError("slow"), False),
        (ValueError("an answer that makes no sense"), False),
    ],
)
def test_what_is_not_worth_another_try(error: Exception, expected: bool) -> None:
    wrapped = RuntimeError("of an HTTP library")
    wrapped.__cause__ = error
    assert any(map(is_nobody_there, chain(wrapped))) is expected
