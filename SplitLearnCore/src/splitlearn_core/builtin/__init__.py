"""The small real model that ships with the package: GPT-2 architecture, trained on Python's standard library.

`README.md` beside this file is its model card; `scripts/train_builtin.py` in the repository makes it.
"""

from importlib.resources import files
from pathlib import Path

__all__ = ["BUILTIN_MODEL_ID", "builtin_directory"]

BUILTIN_MODEL_ID = "builtin"
"""The name under which this model is asked for, where a Hugging Face model id could stand as well."""


def builtin_directory() -> Path:
    """The directory to give to `from_pretrained`: configuration, float16 weights and tokenizer."""
    return Path(str(files(__name__)))
