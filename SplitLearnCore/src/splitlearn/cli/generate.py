"""`splitlearn generate`: text from a split model."""

from typing import Annotated

import torch
import typer
from transformers import TextStreamer

from splitlearn.cli.groups import with_groups
from splitlearn.cli.loading import load_split
from splitlearn.cli.options import SAY_WHICH, AdapterName, CutOptions, Model, TrunkOptions
from splitlearn.cli.prompt import check_length, encode
from splitlearn.cli.quiet import set_up_logging
from splitlearn.cli.security import CallerOptions
from splitlearn.errors import OptionError
from splitlearn_core import load_tokenizer
from splitlearn_core.checkpoint.source import locate

PROMPT = "def fibonacci(n):\n"


@with_groups
def generate(
    model: Model = "builtin",
    *,
    prompt: Annotated[
        str, typer.Option(help=f"Text to continue. Default: {PROMPT.strip()}", show_default=False)
    ] = PROMPT,
    trunk: TrunkOptions,
    adapter: AdapterName = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 50,
    sample: Annotated[bool, typer.Option("--sample", help="Sample. Default: take the likeliest token.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample: below 1 careful, above 1 bold.")] = 1.0,
    seed: Annotated[int, typer.Option(help="With --sample: the same seed gives the same text.")] = 0,
    cut: CutOptions,
    caller: CallerOptions,
) -> None:
    """Continue a prompt; text and token ids stay in this process."""
    set_up_logging("warning")
    if sample and not temperature > 0:
        raise OptionError(f"--temperature takes a number above 0; got {temperature:g}: leave --sample out instead")
    if adapter is not None and not (adapter and trunk.trunk):
        raise OptionError(f"--adapter {adapter or repr(adapter)} names one that a server keeps: {SAY_WHICH}")
    trunk.check()
    cut.check()
    torch.manual_seed(seed)
    source = locate(model, cut.revision)  # once: the branch may go on before the tokenizer is loaded
    tokenizer = load_tokenizer(model, source.commit)
    encoded = encode(tokenizer, prompt)
    split = load_split(model, source, trunk=trunk, cut=cut, caller=caller, adapter=adapter)
    check_length(encoded, max_new_tokens, split.max_positions)
    options = {"do_sample": True, "temperature": temperature} if sample else {"do_sample": False}
    split.generate(
        **encoded,
        max_new_tokens=max_new_tokens,
        streamer=TextStreamer(tokenizer),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **options,
    )
