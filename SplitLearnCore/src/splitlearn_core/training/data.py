"""Text files as examples to learn from.

Tensor shapes: T tokens of one example.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from splitlearn_core.errors import TrainingDataError

IGNORED = -100
"""Label of a token that is not learned, as transformers has it."""
TEXT, PROMPT, COMPLETION = "text", "prompt", "completion"


class TextExamples(Dataset[dict[str, torch.Tensor]]):
    """Examples of a file, each with `input_ids` [T], `attention_mask` [T] and `labels` [T].

    Args:
        examples: token ids of each, and how many of the first are not learned.
    """

    def __init__(self, examples: Sequence[tuple[list[int], int]]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids, num_given = self._examples[index]
        input_ids_T = torch.tensor(ids)
        labels_T = input_ids_T.clone()
        labels_T[:num_given] = IGNORED
        return {"input_ids": input_ids_T, "attention_mask": torch.ones_like(input_ids_T), "labels": labels_T}

    def split(self, path: str | Path) -> "tuple[TextExamples, TextExamples]":
        """Return all but the last tenth, and that; `path` is named in the error.

        Raises:
            TrainingDataError: there are fewer than two examples.
        """
        if len(self) < 2:
            raise TrainingDataError(f"{path} makes one example: none can be held out; give other text to evaluate on")
        num_held_out = max(1, len(self) // 10)
        return TextExamples(self._examples[:-num_held_out]), TextExamples(self._examples[-num_held_out:])

    @property
    def num_tokens(self) -> int:
        """Tokens in all examples together."""
        return sum(len(ids) for ids, _ in self._examples)


def read_examples(path: str | Path, tokenizer: PreTrainedTokenizerBase, block_size: int) -> TextExamples:
    """Read a file of text.

    Args:
        path: `.txt`: one text, cut into blocks of `block_size` tokens, of which the last may be shorter. `.jsonl`: an
            example a line, `{"text": …}` or `{"prompt": …, "completion": …}`, of which the prompt is not learned and
            the end is, where the tokenizer has a token for it.
        tokenizer: that of the model.
        block_size: tokens of an example at most.

    Raises:
        TrainingDataError: the file is not there, empty, or not of this form; it says in which line.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return TextExamples(list(_lines(path, tokenizer, block_size)))
    if path.suffix != ".txt":
        raise TrainingDataError(f"expected a file that ends in .txt or .jsonl; got {path}")
    ids = _ids(tokenizer, _read(path))
    blocks = [ids[begin : begin + block_size] for begin in range(0, len(ids), block_size)]
    examples = [(block, 0) for block in blocks if len(block) > 1]  # of one token nothing can be learned
    if not examples:
        raise TrainingDataError(
            f"{path} has {len(ids)} of the 2 tokens that the shortest example has: there is nothing to predict in it"
        )
    return TextExamples(examples)


def _lines(path: Path, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Iterator[tuple[list[int], int]]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        prompt, completion = _texts(line, where)
        given = _ids(tokenizer, prompt) if prompt else []
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids = given + _ids(tokenizer, completion) + end
        if len(ids) > block_size:
            raise TrainingDataError(
                f"{where} has {len(ids)} tokens, and an example may have {block_size}: shorten it, cut it "
                f"into several lines, or raise the block size as far as the model goes"
            )
        if len(ids) < 2 or len(ids) == len(given):
            raise TrainingDataError(f"{where} has {len(ids)} tokens: there is nothing to predict in it")
        yield ids, len(given)


def _texts(line: str, where: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise TrainingDataError(f"{where} is no JSON ({error.msg} at character {error.pos}): {line[:40]!r}") from error
    if isinstance(row, dict):
        prompt, completion = ("", row[TEXT]) if TEXT in row else (row.get(PROMPT), row.get(COMPLETION))
        if isinstance(prompt, str) and isinstance(completion, str):
            return prompt, completion
    keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise TrainingDataError(
        f'{where}: expected {{"text": …}} or {{"prompt": …, "completion": …}} with texts; got {keys}'
    )


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TrainingDataError(
            f"{path} is not text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
    except OSError as error:
        raise TrainingDataError(f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise TrainingDataError(f"{path} is empty: expected text to learn from")
    return text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose: transformers warns of texts longer than the model, and these are cut.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def collate(examples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put examples into one batch, padded on the right with tokens that nobody sees and nobody learns."""
    return {
        name: torch.nn.utils.rnn.pad_sequence([each[name] for each in examples], True, padding)
        for name, padding in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED))
    }
