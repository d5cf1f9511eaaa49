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


def check_length(encoded: BatchEncoding, max_new_tokens: int, limit: int | None) -> None:
    """See that a model has room for a prompt and what is to follow, before the first token of it.

    Args:
        encoded: The prompt, as `encode` returns it.
        max_new_tokens: How many tokens are to follow.
        limit: The longest sequence that the model takes, in tokens; None where it has no bound.

    Raises:
        OptionError: it has not; the text might end sooner, but nobody should find out after minutes.
    """
    num_tokens = encoded["input_ids"].shape[1]
    # What is generated last is never fed back.
    if limit is not None and num_tokens + max_new_tokens - 1 > limit:
        most = limit + 1 - num_tokens
        advice = f"at most {most} behind this prompt" if most > 0 else "none behind this prompt; shorten it"
        raise OptionError(
            f"--max-new-tokens takes {advice}: it has {num_tokens} tokens, and the model takes sequences of at most "
            f"{limit}; got {max_new_tokens}"
        )
