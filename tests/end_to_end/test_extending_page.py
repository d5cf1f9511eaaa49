"""docs/extending.md runs as it is written; its assertions are in its code."""

from pathlib import Path

import pytest

from tests.support.page_runs import run_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.mark.slow
def test_every_extension_works(tmp_path: Path) -> None:
    moved, spoiled, loss, refused = run_page(PAGE, tmp_path).splitlines()
    position, moves = map(int, moved.split())
    assert position >= 4
    assert moves == 1
    assert spoiled == "1 1"
    assert loss.startswith("signs: 0.0315 of the bytes")
    assert refused.startswith("nothing listens at localhost:1")
