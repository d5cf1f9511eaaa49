"""A prompt as a model takes it."""

from transformers import BatchEncoding, PreTrainedTokenizerBase

from splitlearn.errors import OptionError


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> BatchEncoding:
    """Return the token ids [1, T] of a prompt and what goes with them.

    Raises:
        OptionError: the prompt makes no token, so that there is nothing to go on from.
    """
    encoded: BatchEncoding = tokenizer(prompt, return_tensors="pt")
    if encoded["input_ids"].shape[1] == 0:
        raise OptionError(f"--prompt takes some text to go on from; got {prompt!r}")
    return encoded
