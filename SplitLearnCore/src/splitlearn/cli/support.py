"""`splitlearn support`: what can be cut."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from splitlearn.errors import OptionError
from splitlearn_core.split.support import SupportRow, measured_with, support_rows


def support(
    model_types: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL_TYPE]…", help="Model types of config.json. Default: all.")
    ] = None,
) -> None:
    """List the architectures of transformers: supported and how exactly, or refused and why."""
    rows = support_rows()
    unknown = set(model_types or ()) - {row.model_type for row in rows}
    if unknown:
        raise OptionError(
            f"{', '.join(sorted(unknown))}: no model type in the table; without an argument this command lists them "
            "all, and a type that is not among them is checked when a model of it is loaded"
        )
    shown = [row for row in rows if not model_types or row.model_type in model_types]
    out = Console(highlight=False)
    out.print(table_of(shown))
    supported = sum(row.refusal is None for row in shown)
    out.print(f"{supported} supported, {len(shown) - supported} refused; measured with transformers {measured_with()}")


def table_of(rows: list[SupportRow]) -> Table:
    """Lay the rows out; figures are largest differences from the unsplit model, by the largest logit or gradient."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("model type", "prefill", "decode", "gradients", "refused because"):
        table.add_column(name, overflow="fold")
    for row in rows:
        if row.refusal is not None:
            table.add_row(row.model_type, "", "", "", row.refusal)
        else:
            table.add_row(row.model_type, *(figure(f) for f in (row.prefill, row.decode, row.gradients)), "")
    return table


def figure(difference: float | None) -> str:
    """Print a difference; 0 says that every bit is equal."""
    return "" if difference is None else f"{difference:.1e}" if difference else "0"
