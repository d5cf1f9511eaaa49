"""The texts of `splitlearn train`, read before a model is loaded."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from splitlearn.cli.train_options import LONGEST_BLOCK, TextOptions
from splitlearn.errors import OptionError
from splitlearn_core.errors import TrainingDataError
from splitlearn_core.training.data import TextExamples, read_examples


def read_texts(
    texts: TextOptions, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> tuple[TextExamples, TextExamples]:
    """Return what is learned, and what is held out.

    Args:
        texts: which files, and how they are cut.
        tokenizer: that of the model.
        limit: the longest sequence that the model takes, in tokens; None where it has no bound.

    Raises:
        OptionError: a file is empty, or of another form, or too small to hold some out.
    """
    assert texts.data is not None, "it was checked"
    block_size = block_of(texts.block_size, limit)
    examples = read("--data", texts.data, tokenizer, block_size)
    if texts.eval_data is not None:
        return examples, read("--eval-data", texts.eval_data, tokenizer, block_size)
    if len(examples) < 2:
        smaller = f", or cut it into smaller ones than {block_size} tokens with --block-size"
        raise OptionError(
            f"--data {texts.data} makes one example, and none can be held out: name other text with --eval-data"
            + (smaller if texts.data.suffix == ".txt" else "")
        )
    return examples.split(texts.data)


def block_of(asked: int | None, limit: int | None) -> int:
    """Return how many tokens an example has at most.

    Raises:
        OptionError: more than the model takes.
    """
    if asked is not None and limit is not None and asked > limit:
        raise OptionError(f"--block-size {asked} is more than the {limit} tokens that the model takes")
    return asked or min(LONGEST_BLOCK, limit or LONGEST_BLOCK)


def read(option: str, path: Path, tokenizer: PreTrainedTokenizerBase, block_size: int) -> TextExamples:
    """Read one file; what is wrong with it is an `OptionError` of the option that named it."""
    try:
        return read_examples(path, tokenizer, block_size)
    except TrainingDataError as error:
        raise OptionError(f"{option}: {error}") from error
