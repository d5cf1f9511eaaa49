"""`splitlearn generate`: text from a split model."""

from typing import Annotated

import torch
import typer
from transformers import TextStreamer

from splitlearn.cli.options import DtypeName, Model, SplitAt, parse_dtype, parse_split_points
from splitlearn.cli.quiet import set_up_logging
from splitlearn.model import SplitModelForCausalLM
from splitlearn_core import load_tokenizer


def generate(
    model: Model = "builtin",
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "def fibonacci(n):\n",
    trunk: Annotated[
        str | None, typer.Option(help="host:port of a trunk server. Default: load the trunk into this process.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 50,
    sample: Annotated[bool, typer.Option("--sample", help="Sample. Default: take the likeliest token.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample: below 1 careful, above 1 bold.")] = 1.0,
    seed: Annotated[int, typer.Option(help="With --sample: the same seed gives the same text.")] = 0,
    split_points: SplitAt = None,
    dtype: DtypeName = None,
) -> None:
    """Continue a prompt; text and token ids stay in this process."""
    set_up_logging("warning")
    torch.manual_seed(seed)
    split = SplitModelForCausalLM.from_pretrained(
        model, trunk=trunk, split_points=parse_split_points(split_points), dtype=parse_dtype(dtype)
    )
    tokenizer = load_tokenizer(model)
    options = {"do_sample": True, "temperature": temperature} if sample else {"do_sample": False}
    split.generate(
        **tokenizer(prompt, return_tensors="pt"),
        max_new_tokens=max_new_tokens,
        streamer=TextStreamer(tokenizer),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **options,
    )
