"""`splitlearn serve`: host trunks."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitlearn.cli.groups import with_groups
from splitlearn.cli.options import CutOptions, Device, blamed_on
from splitlearn.cli.quiet import set_up_logging
from splitlearn.cli.security import DoorOptions, check_door
from splitlearn.errors import OptionError, needing

if TYPE_CHECKING:
    from splitlearn_manager.listening import ListeningServer
    from splitlearn_manager.settings import ServeSettings


@with_groups
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]MODEL]…",
            help="Hub id, local directory, or 'builtin'; clients ask by NAME (the last part). Default: builtin.",
            show_default=False,
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="SPLITLEARN_CONFIG", help="TOML file with a configuration; options go before it. Default: none."
        ),
    ] = None,
    managed: Annotated[
        bool | None,
        typer.Option(
            "--managed/--in-process",
            help="Each model in a process of its own; models may be loaded and unloaded while it serves. Default: "
            "managed with several models, else the one in this process.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="TCP port; 0 picks a free one. Default: 50051.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at, or unix:/path. Default: 127.0.0.1.")] = None,
    cut: CutOptions,
    device: Device = None,
    attn_implementation: Annotated[
        str | None, typer.Option(help="sdpa, eager, flash_attention_2, … Default: what the model prefers.")
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Run its layers through torch.compile, made in seconds to minutes, where it can be had. Default: no.",
        ),
    ] = False,
    door: DoorOptions,
    operator: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a token that may load, unload and drain; may be given several times. Default: with tokens "
            "nobody, without whoever is on this machine.",
            show_default=False,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port of /metrics for Prometheus, on this machine; 0 picks a free one. Default: none.",
        ),
    ] = None,
    max_trainings: Annotated[
        int | None,
        typer.Option(min=1, help="Clients that may train a model at once. Default: 8."),
    ] = None,
    allow_full_training: Annotated[
        bool | None,
        typer.Option(
            "--allow-full-training/--adapters-only",
            help="Whether clients may train all weights of a Trunk, each of a private copy. Default: adapters only.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. Default: info.")] = None,
    log_format: Annotated[
        str | None, typer.Option(help="json or text. Default: text on a terminal, JSON elsewhere.")
    ] = None,
) -> None:
    """Host the Trunks of models until SIGINT or SIGTERM, or until an operator drains the server."""
    if log_level is not None:
        set_up_logging(log_level)
    cut.check()
    of_one = given(**asdict(cut), device=device, attn_implementation=attn_implementation, compile=compile or None)
    server_table = door.tree() | given(operators=operator or None, metrics_port=metrics_port)
    server_table |= given(max_trainings=max_trainings, allow_full_training=allow_full_training)
    flags = given(port=port, host=host, managed=managed, log_level=log_level, log_format=log_format)
    flags |= given(server=server_table or None)
    settings = settings_of(config, models or [], of_one, flags)
    run(made_server(settings, attn_implementation))


def settings_of(
    config: Path | None, models: list[str], of_one: dict[str, Any], flags: dict[str, Any]
) -> "ServeSettings":
    """Put together what file, environment and command line say, the later before the earlier.

    Args:
        config: the file; None for none.
        models: of the command line, each `MODEL` or `NAME=MODEL`.
        of_one: options of the command line that are about one model.
        flags: the others, as a file would have them.
    """
    with needing(
        "serving needs SplitLearnManager: pip install splitlearn-core[server] splitlearn-comm[server] "
        "splitlearn-manager[server]"
    ):
        from splitlearn_manager.settings import read_environment, read_file, settings_from
    before = [(str(config), read_file(config))] if config else []
    before.append(("the environment", read_environment(os.environ)))
    has_models = any("models" in tree for _, tree in before)
    flags |= given(models=model_tables(models, of_one, has_models))
    return settings_from(*before, ("the command line", flags))


def made_server(settings: "ServeSettings", attn_implementation: str | None) -> "ListeningServer":
    """Set up the log, and make what the settings describe; the option is the one to blame if a library refuses it."""
    from splitlearn_comm.logs import configure_logging
    from splitlearn_manager.serving import make_server

    set_up_logging(settings.log_level)
    configure_logging(settings.log_level, None if settings.log_format == "auto" else settings.log_format)
    check_door(settings.host, settings.server)
    with blamed_on("--attn-implementation", attn_implementation):
        return make_server(settings)


def run(server: "ListeningServer") -> None:
    """Serve, and say where, until a signal comes or an operator drains the server."""

    def tell() -> None:
        # A program that starts this one waits for this line.
        print(f"listening at {server.address}", flush=True)
        if server.metrics_url:
            print(f"metrics at {server.metrics_url}", flush=True)

    server.start(on_ready=tell)


def given(**values: Any) -> dict[str, Any]:
    """Return those that were given."""
    return {key: value for key, value in values.items() if value is not None}


def model_tables(models: list[str], of_one: dict[str, Any], has_models: bool) -> list[dict[str, Any]] | None:
    """Return the tables of the models on the command line; None where it says nothing of models.

    Args:
        models: each `MODEL` or `NAME=MODEL`.
        of_one: options that are about one model.
        has_models: whether a file or the environment names models.

    Raises:
        OptionError: there are such options, and not one model here.
    """
    from splitlearn_manager.settings import read_models

    if of_one and (len(models) > 1 or (has_models and not models)):
        options = ", ".join("--" + key.replace("_", "-") for key in of_one)
        raise OptionError(
            f"{options}: about one model, and there are several or they are named elsewhere; say it there"
        )
    if not models:
        return [{"model": "builtin", **of_one}] if of_one else None
    return [{**table, **of_one} for table in read_models(models)]
