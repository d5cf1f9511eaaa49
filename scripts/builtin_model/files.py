"""What a training directory holds, and how it is read and written."""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from builtin_model.corpus import Corpus, SourceFile, is_test, read_corpus
from builtin_model.tokenizer import train_tokenizer


@dataclass(frozen=True, kw_only=True)
class PreparedFile:
    """One source file, ready for training or evaluation."""

    name: str
    tokens: list[int]
    """The beginning-of-text token and the file's own."""
    num_bytes: int


@dataclass(frozen=True)
class TrainingDirectory:
    """The paths of one run."""

    path: Path

    @property
    def tokenizer(self) -> Path:
        """The trained tokenizer, as `tokenizers` saves it."""
        return self.path / "tokenizer.json"

    @property
    def corpus(self) -> Path:
        """Names and sizes of the files on each side of the split."""
        return self.path / "corpus.json"

    @property
    def tokens(self) -> Path:
        """The prepared files."""
        return self.path / "tokens.pt"

    @property
    def checkpoint(self) -> Path:
        """Everything that is needed to resume."""
        return self.path / "checkpoint.pt"

    @property
    def evaluation(self) -> Path:
        """The measured numbers."""
        return self.path / "evaluation.json"


def prepare(directory: TrainingDirectory, *, with_tests: bool, vocab_size: int) -> None:
    """Read the corpus, train the tokenizer on its training files, and tokenize both sides."""
    directory.path.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(with_tests=with_tests)
    tokenizer = train_tokenizer((file.text for file in corpus.training), vocab_size=vocab_size)
    tokenizer.save(str(directory.tokenizer))
    write_json(directory.corpus, _describe(corpus))
    sides = {"training": corpus.training, "held_out": corpus.held_out}
    torch.save(
        {side: [_tokenized(file, tokenizer) for file in files] for side, files in sides.items()}, directory.tokens
    )


def load_prepared(directory: TrainingDirectory, side: str) -> list[PreparedFile]:
    """The prepared files of "training" or "held_out"."""
    if not directory.tokens.exists():
        raise SystemExit(f"{directory.tokens} is missing: run the command 'prepare' first.")
    return [PreparedFile(**file) for file in torch.load(directory.tokens, weights_only=True)[side]]


def write_json(path: Path, content: Any) -> None:
    """Write `content`, readable, and whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    os.replace(unfinished, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def _tokenized(file: SourceFile, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"name": file.name, "tokens": [0, *tokenizer.encode(file.text).ids], "num_bytes": file.num_bytes}


def _describe(corpus: Corpus) -> dict[str, Any]:
    tests = [file for file in corpus.training if is_test(file.name)]
    return {
        "python": platform.python_version(),
        "training_files": len(corpus.training),
        "training_bytes": sum(file.num_bytes for file in corpus.training),
        "training_test_files": len(tests),
        "near_copies": corpus.near_copies,
        "held_out": {file.name: file.num_bytes for file in corpus.held_out},
    }
