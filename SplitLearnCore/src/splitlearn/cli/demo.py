"""`splitlearn demo`: a server in one process, a client in this one, and the proof that nothing changed."""

import os
import time
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel, TextStreamer

from splitlearn.cli.child_server import child_server
from splitlearn.cli.options import Model, Revision
from splitlearn.cli.prompt import check_length, encode
from splitlearn.cli.quiet import set_up_logging
from splitlearn.model import SplitModelForCausalLM, connect
from splitlearn_core import SplitModel, load_tokenizer
from splitlearn_core.checkpoint.source import locate

PROMPT = "def read_lines(path):\n"


def demo(
    model: Model = "builtin",
    prompt: Annotated[
        str, typer.Option(help=f"Text to continue. Default: {PROMPT.strip()}", show_default=False)
    ] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 60,
    revision: Revision = None,
) -> None:
    """Start a trunk server in another process, generate text across the cut, and compare with the unsplit model."""
    set_up_logging("warning")
    out = Console(highlight=False, soft_wrap=True)
    commit = locate(model, revision).commit  # once: the branch may go on before all have loaded theirs
    tokenizer = load_tokenizer(model, commit)
    encoded = encode(tokenizer, prompt)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    at_commit = () if commit is None else ("--revision", commit)
    with child_server(model, *at_commit) as (address, server_pid), connect(address) as trunk:
        split = SplitModelForCausalLM.from_pretrained(model, trunk=trunk, revision=commit)
        check_length(encoded, max_new_tokens, split.max_positions)
        introduce(out, model, split, address, server_pid)
        out.rule("text")
        started = time.perf_counter()
        tokens: torch.Tensor = split.generate(**encoded, **options, streamer=TextStreamer(tokenizer))
        elapsed_s = time.perf_counter() - started
        out.rule()
        wire_bytes = trunk.wire_bytes()
    num_new = tokens.shape[1] - encoded["input_ids"].shape[1]
    whole: Any = whole_model(model, commit)
    identical = torch.equal(tokens, whole.generate(**encoded, **options))
    out.print(f"identical to the unsplit model: {'[bold green]yes' if identical else '[bold red]no'}[/]")
    out.print(f"{1000 * elapsed_s / num_new:.1f} ms per token, {wire_bytes / num_new:,.0f} bytes per token on the wire")
    if not identical:
        raise typer.Exit(1)


def introduce(out: Console, model: str, split: SplitModel, address: str, server_pid: int) -> None:
    """Say which process holds what."""
    a, b = split.split_points
    n = split.cut.num_layers
    out.print(f"model   {model}, {n} layers, cut at ({a}, {b})")
    out.print(f"server  process {server_pid} at {address}: layers {a} to {b - 1}")
    out.print(f"client  process {os.getpid()}: embeddings, layers 0 to {a - 1} and {b} to {n - 1}, head")
    out.print("wire    hidden states; text, token ids and logits stay with the client")


def whole_model(model: str, commit: str | None) -> PreTrainedModel:
    """Load the unsplit model into this process, as plain transformers does, in float32."""
    name = locate(model).directory if commit is None else model
    whole = AutoModelForCausalLM.from_pretrained(name, revision=commit or "main", dtype=torch.float32)
    assert isinstance(whole, PreTrainedModel)
    return whole
