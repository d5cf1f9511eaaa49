"""`splitlearn status`, `load`, `unload` and `drain`: what operators ask of a server that runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitlearn.cli.groups import with_groups
from splitlearn.cli.options import CutOptions, Device
from splitlearn.cli.security import CallerOptions
from splitlearn.errors import AddressError, needing
from splitlearn.model import ADDRESS

if TYPE_CHECKING:
    from splitlearn_manager.control import ControlClient, ModelState, ServerState

Address = Annotated[str, typer.Argument(help="host:port or unix:/path of the server.", show_default=False)]
Name = Annotated[str, typer.Argument(help="What clients ask for.", show_default=False)]


@with_groups
def status(address: Address, *, caller: CallerOptions) -> None:
    """Show the models of a server: versions, states and why, sessions."""
    with operating(address, caller) as server:
        state = server.describe()
    out = Console(highlight=False)
    out.print(table_of(state.models))
    ready = sum(model.state == "READY" for model in state.models)
    out.print(f"{'draining' if state.is_draining else 'serving'}, {ready} of {len(state.models)} ready")


@with_groups
def load(
    address: Address,
    model: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]MODEL",
            help="Hub id, directory, or 'builtin', under its last part or NAME; or the name of one that was unloaded.",
            show_default=False,
        ),
    ],
    *,
    reload: Annotated[
        bool, typer.Option("--reload", help="Take the place of the version that serves. Default: refuse, if one does.")
    ] = False,
    version: Annotated[int | None, typer.Option(min=1, help="Number of the version. Default: 1, or as it was.")] = None,
    device: Device = None,
    cut: CutOptions,
    caller: CallerOptions,
) -> None:
    """Load a model into a server and wait until it is ready; Ctrl-C cancels the load."""
    cut.check()
    options = {"version": version, "device": device, "reload": reload or None, **asdict(cut)}
    parameters = {key: value for key, value in options.items() if value is not None}
    with operating(address, caller) as server:
        name, model_id = named(model, server.describe())
        server.load_model(name, parameters | ({"model": model_id} if model_id else {}))
        newest = max(int(known.version) for known in server.describe().models if known.name == name)
    typer.echo(f"{name} version {version or newest} is ready")


@with_groups
def unload(
    address: Address,
    name: Name,
    *,
    version: Annotated[
        int | None, typer.Option(min=1, help="Number of the version. Default: all that are loaded.")
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds that its sessions may go on. Default: as the server is configured."),
    ] = None,
    caller: CallerOptions,
) -> None:
    """Take no new sessions for a model, wait for those there are, and unload it."""
    parameters: dict[str, Any] = {} if version is None else {"version": version}
    if drain_timeout is not None:
        parameters["drain_timeout_s"] = str(drain_timeout)
    with operating(address, caller) as server:
        server.unload_model(name, parameters)
    typer.echo(f"{name} is unloaded")


@with_groups
def drain(
    address: Address,
    *,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds that sessions may take to finish or move. Default: as the server is configured."
        ),
    ] = None,
    caller: CallerOptions,
) -> None:
    """End a server in order: it is ready no more, its sessions move or finish, and it exits; waits for that."""
    with operating(address, caller) as server:
        num_sessions = server.drain(grace)
        typer.echo(f"{address} is draining, with {num_sessions} sessions")
        server.wait_gone()
    typer.echo(f"{address} has ended")


@contextmanager
def operating(address: str, caller: CallerOptions) -> "Iterator[ControlClient]":
    """Connect to a server as its operator.

    Raises:
        AddressError, OptionError: an address or options that cannot be.
    """
    if not ADDRESS.fullmatch(address):
        raise AddressError(f"a server's address is host:port, such as localhost:50051; got {address!r}")
    with needing("operating a server needs SplitLearnManager: pip install splitlearn-manager"):
        from splitlearn_manager.control import ControlClient
    with ControlClient(address, **caller.connection(address)) as client:
        yield client


def named(text: str, server: "ServerState") -> tuple[str, str | None]:
    """Return name and model id of what is to be loaded; no id for a model that the server knows by that name."""
    from splitlearn_manager.spec_reading import name_of

    name, is_named, model = text.rpartition("=")
    if is_named:
        return name, model
    if any(known.name == text for known in server.models):
        return text, None
    return name_of(text), text


def table_of(models: "tuple[ModelState, ...]") -> Table:
    """Lay the models out."""
    table = Table(box=None, pad_edge=False)
    for column in ("model", "version", "state", "since (UTC)", "sessions", "reason"):
        table.add_column(column, justify="right" if column in ("version", "sessions") else "left")
    for model in models:
        since = datetime.fromtimestamp(model.since, UTC).strftime("%Y-%m-%d %H:%M:%S")
        reason = f"{model.reason}; {model.progress}" if model.progress else model.reason
        table.add_row(model.name, model.version, model.state, since, str(model.num_sessions), escape(reason))
    return table
