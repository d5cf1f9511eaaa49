"""The front door of SplitLearn: a Hugging Face model whose middle lives elsewhere."""

from splitlearn.model import SplitModelForCausalLM

__all__ = ["SplitModelForCausalLM"]
