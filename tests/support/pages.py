"""Python blocks of Markdown pages: cut out, and run as they are written.

A block under `<!-- server … -->` is run in a process of its own, beside the others; one under `<!-- not run … -->` is
left out. The others share a namespace, in order. `python -m tests.support.pages PAGE LINE PORT` runs the block at a
line; without a line, the others.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (?P<mark>server|not run)\b[^>]*-->\s*\Z")
WRITTEN_PORT = "50051"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One Python block."""

    code: str
    line: int
    """Where its code begins, from 1."""
    mark: str
    """`server`, `not run`, or empty."""


def blocks_of(page: Path) -> list[Block]:
    """Cut the Python blocks out of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in FENCE.finditer(text):
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start("code")) + 1
        blocks.append(Block(code=match["code"], line=line, mark=mark["mark"] if mark else ""))
    return blocks


def run(page: Path, blocks: list[Block], port: str) -> None:
    """Run blocks in one namespace; a traceback names the page and its line."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        code = "\n" * (block.line - 1) + block.code.replace(WRITTEN_PORT, port)
        exec(compile(code, str(page), "exec"), namespace)


def main(name: str, line: str, port: str) -> None:
    """Run the block at a line, or (`all`) all that are not marked."""
    page = Path(name)
    wanted = [b for b in blocks_of(page) if (str(b.line) == line if line != "all" else not b.mark)]
    assert wanted, f"{page} has no such block"
    run(page, wanted, port)


if __name__ == "__main__":
    main(*sys.argv[1:])
