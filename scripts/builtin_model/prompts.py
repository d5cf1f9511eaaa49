"""Ten fixed prompts, and what it means that the complete lines of a continuation parse.

The rule, for a prompt and its greedy continuation taken as one text:

1. The text is cut after its last line end; the line in which generation stopped does not count.
2. The continuation must have at least one complete line that is not blank, or the prompt fails.
3. The rest must be Python, or the beginning of Python: nothing wrong with it but that it ends too early, inside a
   bracket, a string, or a block that has no statement yet, so that it parses once the lines after its last complete
   statement are dropped. The compiler decides this, as it does at the interactive prompt. Any other syntax error,
   wherever it is, fails.

The stricter reading, in which the cut text must parse as it stands, is reported beside it.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

CONTINUATION_TOKENS = 60

PROMPTS = (
    "import os\nimport sys\n",
    "def read_file(path):\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "def main():\n    parser = argparse.ArgumentParser(",
    "for name in sorted(names):\n",
    "class ParseError(Exception):\n",
    "try:\n    import json\nexcept ImportError:\n",
    "def __repr__(self):\n    return",
    "with open(filename, 'rb') as f:\n",
    "if __name__ == '__main__':\n",
)
"""Beginnings that a person might type; none was chosen by how a model continues it."""

_ALLOW_INCOMPLETE = 0x4000
"""CPython's PyCF_ALLOW_INCOMPLETE_INPUT, which the standard library's `codeop` passes to `compile`."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """One prompt with what the model made of it."""

    prompt: str
    text: str
    """The continuation alone."""
    parses: bool
    parses_as_cut: bool
    """Whether the cut text parses as it stands, with nothing dropped from its end."""
    reason: str
    """Why it parses or does not, in a few words."""


@torch.inference_mode()
def continue_greedily(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """The greedy continuation of `prompt`, at most `CONTINUATION_TOKENS` tokens, the end-of-text token left out."""
    ids = tokenizer(prompt, return_tensors="pt")
    whole: Any = model  # transformers annotates generate for a private protocol
    generated = whole.generate(**ids, max_new_tokens=CONTINUATION_TOKENS, do_sample=False)
    return str(tokenizer.decode(generated[0, ids["input_ids"].size(1) :], skip_special_tokens=True))


def judge(prompt: str, continuation: str) -> Continuation:
    """Apply the rule at the top of this module."""
    failure = _failure(prompt, continuation, flags=_ALLOW_INCOMPLETE)
    return Continuation(
        prompt=prompt,
        text=continuation,
        parses=failure is None,
        parses_as_cut=_failure(prompt, continuation, flags=0) is None,
        reason=failure or "complete lines parse",
    )


def evaluate_prompts(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: Iterable[str] = PROMPTS
) -> list[Continuation]:
    """Continue and judge each prompt."""
    return [judge(prompt, continue_greedily(model, tokenizer, prompt)) for prompt in prompts]


def _failure(prompt: str, continuation: str, *, flags: int) -> str | None:
    """Why the text fails, or None."""
    if not _complete_lines(continuation).strip():
        return "no complete line was generated"
    text = _complete_lines(prompt + continuation)
    try:
        compile(text, "<continuation>", "exec", flags=ast.PyCF_ONLY_AST | flags, dont_inherit=True)
    except SyntaxError as error:
        return None if error.msg == "incomplete input" else f"line {error.lineno}: {error.msg}"
    return None


def _complete_lines(text: str) -> str:
    return text[: text.rfind("\n") + 1]
