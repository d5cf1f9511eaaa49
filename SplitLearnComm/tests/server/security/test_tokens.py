import hashlib
import logging
import os
from pathlib import Path

import pytest

from splitlearn_comm.server import TokenFile
from splitlearn_comm.server.security.tokens import TokenBook, parse_tokens

SECRET, OTHER = "a-secret-of-alice-0001", "a-secret-of-bob-000002"


def digest(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def test_a_name_for_each_token_and_none_for_others() -> None:
    book = TokenBook({"alice": SECRET, "bob": digest(OTHER)})
    assert (book.name_of(SECRET), book.name_of(OTHER)) == ("alice", "bob")
    assert [book.name_of(token) for token in ("", SECRET[:-1], SECRET + " ", digest(OTHER), "alice")] == [None] * 5


def test_a_file_with_comments_digests_and_plain_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who may\n\nalice:{SECRET}\n bob : {digest(OTHER).upper().replace('SHA256', 'sha256')}\n")
    book = TokenBook(TokenFile(path))
    assert (book.name_of(SECRET), book.name_of(OTHER)) == ("alice", "bob")


def renewed(path: Path, text: str) -> None:
    path.write_text(text)
    # However coarse the clock of the file system is.
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000_000))


def test_a_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"alice:{SECRET}\n")
    book = TokenBook(TokenFile(path))
    renewed(path, f"bob:{OTHER}\n")
    assert (book.name_of(SECRET), book.name_of(OTHER)) == (None, "bob")
    with caplog.at_level(logging.ERROR):
        renewed(path, f"alice:{SECRET}\ncarol:short\n")
        assert (book.name_of(SECRET), book.name_of(OTHER)) == (None, "bob")
        path.unlink()
        assert book.name_of(OTHER) == "bob"
    assert [record.getMessage().count("what was there before still counts") for record in caplog.records] == [1, 1]
    assert SECRET not in caplog.text
    assert "short" not in caplog.text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "there are no tokens"),
        ("# nobody\n", "there are no tokens"),
        (SECRET, "line 1 of the tokens is no 'name:sha256:HEX'"),
        (f"a:{SECRET}\na:{OTHER}", "name of its own"),
        (f":{SECRET}", "name of its own"),
        ("a:short-secret", "has 12 characters, expected at least 16"),
        ("a:sha256:short-secret", "something else than 64 digits"),
    ],
)
def test_what_is_no_file_of_tokens_is_told_without_the_tokens(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as refused:
        parse_tokens(text)
    assert "-secret" not in str(refused.value)


def test_a_line_that_is_none_is_found_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"alice:{SECRET}\n{OTHER}\n")
    with pytest.raises(ValueError, match=rf"the token file {path}: line 2 of the tokens") as refused:
        TokenBook(TokenFile(path))
    assert OTHER not in str(refused.value)
    path.write_bytes(b"alice:\xff" * 4)
    with pytest.raises(ValueError, match=rf"the token file {path}: it is no UTF-8"):
        TokenBook(TokenFile(path))


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenBook(TokenFile(tmp_path / "none"))
