"""`splitlearn generate`: text from a split model."""

from typing import Annotated

import torch
import typer
from transformers import TextStreamer

from splitlearn.cli.options import DtypeName, Model, Revision, SplitAt, parse_dtype, parse_split_points
from splitlearn.cli.prompt import check_length, encode
from splitlearn.cli.quiet import set_up_logging
from splitlearn.cli.security import Certificate, Key, Token, TrustedCA, UseTLS, connection_options
from splitlearn.errors import OptionError
from splitlearn.model import SplitModelForCausalLM
from splitlearn_core import load_tokenizer
from splitlearn_core.checkpoint.source import locate

PROMPT = "def fibonacci(n):\n"


def generate(
    model: Model = "builtin",
    prompt: Annotated[
        str, typer.Option(help=f"Text to continue. Default: {PROMPT.strip()}", show_default=False)
    ] = PROMPT,
    trunk: Annotated[
        str | None,
        typer.Option(help="host:port or unix:/path of a trunk server. Default: load the trunk into this process."),
    ] = None,
    trunk_model: Annotated[
        str | None,
        typer.Option(
            help="With --trunk: name of the model there, where a server has several. Default: the only one, or the one "
            "with the same weights and cut."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 50,
    sample: Annotated[bool, typer.Option("--sample", help="Sample. Default: take the likeliest token.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample: below 1 careful, above 1 bold.")] = 1.0,
    seed: Annotated[int, typer.Option(help="With --sample: the same seed gives the same text.")] = 0,
    split_points: SplitAt = None,
    dtype: DtypeName = None,
    revision: Revision = None,
    token: Token = None,
    tls: UseTLS = False,
    tls_ca: TrustedCA = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
) -> None:
    """Continue a prompt; text and token ids stay in this process."""
    set_up_logging("warning")
    if sample and not temperature > 0:
        raise OptionError(f"--temperature takes a number above 0; got {temperature:g}: leave --sample out instead")
    if trunk_model and not trunk:
        raise OptionError(f"--trunk-model {trunk_model} names a model of a server: say which with --trunk host:port")
    torch.manual_seed(seed)
    connection = connection_options(token=token, tls=tls, ca=tls_ca, certificate=tls_certificate, key=tls_key)
    connection |= {"model": trunk_model} if trunk_model else {}
    points, chosen_dtype = parse_split_points(split_points), parse_dtype(dtype)
    commit = locate(model, revision).commit  # once: the branch may go on before the tokenizer is loaded
    tokenizer = load_tokenizer(model, commit)
    encoded = encode(tokenizer, prompt)
    split = SplitModelForCausalLM.from_pretrained(
        model,
        trunk=trunk,
        split_points=points,
        dtype=chosen_dtype,
        revision=commit,
        connection=connection if trunk else None,
    )
    check_length(encoded, max_new_tokens, split.max_positions)
    options = {"do_sample": True, "temperature": temperature} if sample else {"do_sample": False}
    split.generate(
        **encoded,
        max_new_tokens=max_new_tokens,
        streamer=TextStreamer(tokenizer),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **options,
    )
