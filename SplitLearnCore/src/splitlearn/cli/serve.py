"""`splitlearn serve`: host a trunk."""

from typing import Annotated

import typer

from splitlearn.cli.options import Device, DtypeName, Model, SplitAt, parse_dtype, parse_split_points
from splitlearn.cli.quiet import set_up_logging


def serve(
    model: Model = "builtin",
    port: Annotated[int, typer.Option(help="TCP port; 0 picks a free one.")] = 50051,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    split_points: SplitAt = None,
    device: Device = None,
    dtype: DtypeName = None,
    attn_implementation: Annotated[
        str | None, typer.Option(help="sdpa, eager, flash_attention_2, … Default: what the model prefers.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Host the Trunk of a model until SIGINT or SIGTERM."""
    set_up_logging(log_level)
    try:
        from splitlearn_manager import ManagedServer
    except ImportError as error:
        raise ImportError(
            "serving needs SplitLearnManager: pip install splitlearn-core[server] splitlearn-comm[server] "
            "splitlearn-manager[server]"
        ) from error
    server = ManagedServer(
        model,
        port=port,
        host=host,
        split_points=parse_split_points(split_points),
        device=device,
        dtype=parse_dtype(dtype),
        attn_implementation=attn_implementation,
    )
    # A program that starts this one waits for this line.
    server.start(on_ready=lambda: print(f"listening at {server.address}", flush=True))
