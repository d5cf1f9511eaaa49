"""The three parts of a model by hand."""

from splitlearn_core import load_split_model

__all__ = ["load_split_model"]
