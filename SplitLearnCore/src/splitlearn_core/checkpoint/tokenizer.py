"""The tokenizer of a checkpoint, found where its weights are found."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from splitlearn_core.checkpoint.source import locate
from splitlearn_core.errors import CheckpointError


def load_tokenizer(model_id: str = "builtin", revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        model_id: `"builtin"`, a local directory in Hugging Face format, or a hub id.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: no such checkpoint, or it holds no tokenizer.
    """
    source = locate(model_id, revision)
    # From the hub under its id: transformers then fetches the files that this kind of tokenizer needs.
    name = source.directory if source.commit is None else model_id
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=source.commit or "main")
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{model_id} holds no tokenizer that transformers can load: {first_line}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
