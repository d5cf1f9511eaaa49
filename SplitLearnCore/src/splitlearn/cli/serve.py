"""`splitlearn serve`: host a trunk."""

from typing import Annotated

import typer

from splitlearn.cli.options import (
    Device,
    DtypeName,
    Model,
    Revision,
    SplitAt,
    blamed_on,
    parse_dtype,
    parse_split_points,
)
from splitlearn.cli.quiet import set_up_logging
from splitlearn.cli.security import AllowInsecure, Certificate, ClientCA, Key, TokenPath, server_config
from splitlearn.errors import needing


def serve(
    model: Model = "builtin",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 picks a free one.")] = 50051,
    host: Annotated[str, typer.Option(help="Address to listen at, or unix:/path.")] = "127.0.0.1",
    split_points: SplitAt = None,
    device: Device = None,
    dtype: DtypeName = None,
    attn_implementation: Annotated[
        str | None, typer.Option(help="sdpa, eager, flash_attention_2, … Default: what the model prefers.")
    ] = None,
    revision: Revision = None,
    tls_certificate: Certificate = None,
    tls_key: Key = None,
    tls_client_ca: ClientCA = None,
    token_file: TokenPath = None,
    allow_insecure: AllowInsecure = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port of /metrics for Prometheus, on this machine; 0 picks a free one. Default: none.",
        ),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Host the Trunk of a model until SIGINT or SIGTERM."""
    set_up_logging(log_level)
    with needing(
        "serving needs SplitLearnManager: pip install splitlearn-core[server] splitlearn-comm[server] "
        "splitlearn-manager[server]"
    ):
        from splitlearn_manager import ManagedServer
    config = server_config(
        host,
        certificate=tls_certificate,
        key=tls_key,
        client_ca=tls_client_ca,
        token_file=token_file,
        allow_insecure=allow_insecure,
        metrics_port=metrics_port,
    )
    points, chosen_dtype = parse_split_points(split_points), parse_dtype(dtype)
    with blamed_on("--attn-implementation", attn_implementation):
        server = ManagedServer(
            model,
            port=port,
            host=host,
            split_points=points,
            device=device,
            dtype=chosen_dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            config=config,
        )

    def tell() -> None:
        # A program that starts this one waits for this line.
        print(f"listening at {server.address}", flush=True)
        if server.metrics_url:
            print(f"metrics at {server.metrics_url}", flush=True)

    server.start(on_ready=tell)
