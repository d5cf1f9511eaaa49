"""`splitlearn demo`: a server in one process, a client in this one, and the proof that nothing changed."""

import os
import time
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel, TextStreamer

from splitlearn.cli.child_server import child_server
from splitlearn.cli.options import Model
from splitlearn.cli.quiet import set_up_logging
from splitlearn.model import SplitModelForCausalLM, connect
from splitlearn_core import SplitModel, load_tokenizer
from splitlearn_core.checkpoint.source import locate

PROMPT = "def read_lines(path):\n"


def demo(
    model: Model = "builtin",
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate.")] = 60,
) -> None:
    """Start a trunk server in another process, generate text across the cut, and compare with the unsplit model."""
    set_up_logging("warning")
    out = Console(highlight=False, soft_wrap=True)
    tokenizer = load_tokenizer(model)
    encoded = tokenizer(prompt, return_tensors="pt")
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    with child_server(model) as (address, server_pid), connect(address) as trunk:
        split = SplitModelForCausalLM.from_pretrained(model, trunk=trunk)
        introduce(out, model, split, address, server_pid)
        out.rule("text")
        started = time.perf_counter()
        tokens: torch.Tensor = split.generate(**encoded, **options, streamer=TextStreamer(tokenizer))
        elapsed_s = time.perf_counter() - started
        out.rule()
        wire_bytes = trunk.wire_bytes()
    num_new = tokens.shape[1] - encoded["input_ids"].shape[1]
    whole: Any = whole_model(model)
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


def whole_model(model: str) -> PreTrainedModel:
    """Load the unsplit model into this process, as plain transformers does, in float32."""
    source = locate(model)
    whole = AutoModelForCausalLM.from_pretrained(
        source.directory if source.commit is None else model, dtype=torch.float32
    )
    assert isinstance(whole, PreTrainedModel)
    return whole
