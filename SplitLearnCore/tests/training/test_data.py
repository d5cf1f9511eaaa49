"""Text files as examples, and what is said of files that are none."""

import re
from pathlib import Path

import pytest
import torch

from splitlearn_core import load_tokenizer
from splitlearn_core.errors import TrainingDataError
from splitlearn_core.training.data import IGNORED, collate, read_examples


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_is_cut_into_blocks_and_nothing_is_lost(tmp_path: Path) -> None:
    tokenizer, text = load_tokenizer(), "def add(a, b):\n    return a + b\n" * 9
    examples = read_examples(written(tmp_path / "a.txt", text), tokenizer, 16)
    assert all(len(examples[i]["input_ids"]) == 16 for i in range(len(examples) - 1))
    ids = torch.cat([examples[i]["input_ids"] for i in range(len(examples))])
    assert tokenizer.decode(ids) == text
    assert examples.num_tokens == len(ids)
    assert torch.equal(examples[0]["labels"], examples[0]["input_ids"])


def test_the_prompt_of_a_line_is_not_learned(tmp_path: Path) -> None:
    lines = '{"prompt": "import ", "completion": "os\\n"}\n\n{"text": "import sys\\n"}\n'
    tokenizer = load_tokenizer()
    given, text = list(read_examples(written(tmp_path / "a.jsonl", lines), tokenizer, 32))
    num_prompt = len(tokenizer("import ").input_ids)
    assert given["labels"][:num_prompt].tolist() == [IGNORED] * num_prompt
    assert torch.equal(given["labels"][num_prompt:], given["input_ids"][num_prompt:])
    assert given["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(text["labels"][:-1]) == "import sys\n"
    batch = collate([given, text])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    padded = batch["attention_mask"] == 0
    assert padded.any()
    assert (batch["labels"][padded] == IGNORED).all()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "", "a.txt is empty: expected text to learn from"),
        ("a.txt", " \n ", "a.txt is empty"),
        ("a.jsonl", "\n\n", "a.jsonl is empty"),
        ("a.txt", b"\xff\xfe", "a.txt is not text in UTF-8: byte 0 is 0xff"),
        ("a.csv", "x", "expected a file that ends in .txt or .jsonl; got"),
        (
            "a.jsonl",
            '{"text": "ok then"}\n{"text": ',
            "line 2 is no JSON (Expecting value at character 9): '{\"text\": '",
        ),
        (
            "a.jsonl",
            '{"content": "a"}',
            'line 1: expected {"text": …} or {"prompt": …, "completion": …} with texts; got con',
        ),
        ("a.jsonl", '{"text": 5}', "line 1: expected"),
        ("a.jsonl", "[1]", "with texts; got list"),
        ("a.jsonl", '{"prompt": "a b c", "completion": 3}', "line 1: expected"),
    ],
)
def test_what_is_no_data(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    with pytest.raises(TrainingDataError, match=re.escape(told)):
        read_examples(written(tmp_path / name, content), load_tokenizer(), 32)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"none\.txt cannot be read: No such file"):
        read_examples(tmp_path / "none.txt", load_tokenizer(), 32)
    (tmp_path / "dir.txt").mkdir()
    with pytest.raises(TrainingDataError, match="cannot be read: Is a directory"):
        read_examples(tmp_path / "dir.txt", load_tokenizer(), 32)


def test_a_line_longer_than_the_model(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "short"}\n{"text": "' + "long and longer " * 20 + '"}\n')
    with pytest.raises(TrainingDataError, match=r"line 2 has \d+ tokens, and an example may have 16: shorten it"):
        read_examples(path, load_tokenizer(), 16)


def test_a_tenth_is_held_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "x = 1\n" * 200)
    examples = read_examples(path, load_tokenizer(), 8)
    learned, held_out = examples.split(path)
    assert len(held_out) == len(examples) // 10
    assert len(learned) + len(held_out) == len(examples)
    assert torch.equal(held_out[0]["input_ids"], examples[len(learned)]["input_ids"])
    with pytest.raises(TrainingDataError, match="makes one example"):
        read_examples(written(tmp_path / "b.txt", "x = 1"), load_tokenizer(), 100).split("b.txt")
