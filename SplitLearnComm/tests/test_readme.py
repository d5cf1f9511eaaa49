"""The code of the README, run as it is written: two processes, and files of the names it uses."""

import re
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.page_runs import run_page
from tests.support.pages import blocks_of

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.slow
def test_the_examples_run_as_written_and_print_what_they_say(tmp_path: Path) -> None:
    certificate, _ = Authority(tmp_path, "ca").issue("server")
    certificate.rename(tmp_path / "server.pem")
    (tmp_path / "tokens").write_text("alice:a-token-of-alice\n")
    printed = run_page(README, tmp_path).splitlines()
    blocks = blocks_of(README)
    assert [block.mark for block in blocks] == ["server", *[""] * 8]
    comments = re.findall(r"print\(.*\)  # (.*)", "\n".join(block.code for block in blocks))
    assert len(comments) == len(printed) == 14
    for comment, value in zip(comments, printed, strict=True):
        pattern = ".*".join(re.escape(part) for part in comment.split("..."))
        assert re.search(pattern, value), f"{value!r} is not {comment!r}"


def lines_of(heading: str) -> list[str]:
    """The lines of code under a heading, without empty ones."""
    text = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    code = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in code for line in block.splitlines() if line.strip()]


def test_a_stranger_needs_ten_lines_and_a_codec_twenty() -> None:
    assert len(lines_of("A function on another machine")) <= 10
    codec = lines_of("A codec of your own")
    assert codec.index("register_codec(OneScale())  # in both processes") < 20
