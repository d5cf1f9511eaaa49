"""The corpus: source text of the running interpreter's standard library, split into training and held-out files.

The split depends on nothing but the files: a file is held out when a hash of its relative path says so, and a training
file that shares much of its text with any held-out file is dropped.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HELD_OUT_SHARE = 0.05
"""Share of the non-test files that is held out."""

SHINGLE_LINES = 4
"""Length in lines of the runs that two files are compared by."""

NEAR_COPY_SHARE = 0.2
"""A training file is a near copy when this share of its runs, or of a held-out file's runs, is common to both."""

TEST_DIRECTORIES = frozenset({"test", "tests", "idle_test"})
FOREIGN_DIRECTORIES = frozenset({"site-packages", "dist-packages", "__pycache__"})
GENERATED_DIRECTORIES = frozenset({"encodings", "pydoc_data"})
"""Tables and documentation written by a program: near copies of one another, and hardly Python text."""
GENERATED_PREFIXES = ("_sysconfigdata",)
"""Build configuration of this one machine: it holds local paths, which a shipped model must not learn."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One Python file of the standard library."""

    name: str
    """Path relative to the library's root, with forward slashes."""
    text: str
    """The file's content, line ends as they are on disk."""

    @property
    def num_bytes(self) -> int:
        """Size in bytes of the UTF-8 text."""
        return len(self.text.encode())


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The two sides of the split, each sorted by name, and the names that were dropped as near copies."""

    training: tuple[SourceFile, ...]
    held_out: tuple[SourceFile, ...]
    near_copies: tuple[str, ...]


def is_test(name: str) -> bool:
    """Whether the file belongs to a test suite."""
    return not TEST_DIRECTORIES.isdisjoint(PurePosixPath(name).parts)


def is_held_out(name: str) -> bool:
    """Whether the file is kept away from training: a pure function of its relative path."""
    digest = hashlib.sha256(name.encode()).digest()
    return not is_test(name) and int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64


def read_corpus(*, with_tests: bool, root: Path | None = None) -> Corpus:
    """Read and split the library below `root`, by default the running interpreter's."""
    files = read_files(root or Path(sysconfig.get_path("stdlib")))
    held_out = tuple(file for file in files if is_held_out(file.name))
    others = [file for file in files if not is_held_out(file.name) and (with_tests or not is_test(file.name))]
    copies = near_copies(others, held_out)
    training = tuple(file for file in others if file.name not in copies)
    return Corpus(training=training, held_out=held_out, near_copies=tuple(sorted(copies)))


def read_files(root: Path) -> list[SourceFile]:
    """Every eligible source file below `root`, sorted by name; files that are empty or not UTF-8 are left out."""
    files = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if _is_eligible(name) and (text := _read_text(path)):
            files.append(SourceFile(name=name, text=text))
    return sorted(files, key=lambda file: file.name)


def near_copies(candidates: list[SourceFile], held_out: tuple[SourceFile, ...]) -> set[str]:
    """Names of the candidates that share much of their text with at least one held-out file."""
    held_out_shingles = [shingles(file.text) for file in held_out]
    return {
        file.name
        for file in candidates
        if any(_overlap(shingles(file.text), other) >= NEAR_COPY_SHARE for other in held_out_shingles)
    }


def shingles(text: str) -> frozenset[int]:
    """Hashes of all runs of `SHINGLE_LINES` lines, blank lines and indentation aside (Broder 1997)."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    runs = range(max(1, len(lines) - SHINGLE_LINES + 1))
    return frozenset(hash(tuple(lines[start : start + SHINGLE_LINES])) for start in runs)


def _overlap(left: frozenset[int], right: frozenset[int]) -> float:
    return len(left & right) / max(1, min(len(left), len(right)))


def _is_eligible(name: str) -> bool:
    path = PurePosixPath(name)
    foreign = (FOREIGN_DIRECTORIES | GENERATED_DIRECTORIES).intersection(path.parts)
    return not foreign and not path.name.startswith(GENERATED_PREFIXES)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
