"""The vocabulary: byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in GPT-2) of the training files."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""The one special token: it begins, ends and pads."""

PIECES = (
    r" ?[\p{L}_]+"  # a name with its underscores, and the space before it
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}_]+\n?"  # "):" with the line end after it
    r"|\s+(?!\S)|\s+"
)
"""What a token may not cross. Source text is mostly names, punctuation and indentation, so a name keeps its
underscores, and punctuation takes the line end after it but never the indentation that follows: a prompt that stops
at "def f():" and a line end then splits as the same text does inside a file."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Learn the merges of `texts`; all 256 bytes are in the vocabulary, so every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_pretrained(tokenizer: Tokenizer, *, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it; decoding leaves every space as it was."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
