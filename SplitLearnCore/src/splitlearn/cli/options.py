"""Options that several commands share, each with its unit and default in the help text."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer

from splitlearn.errors import OptionError
from splitlearn_core import CoreError

Model = Annotated[str, typer.Argument(help="Hub id, local directory, or 'builtin'.")]
SplitAt = Annotated[
    str | None,
    typer.Option(
        "--split-points",
        metavar="A,B",
        help="Bottom = layers 0 to A-1, Trunk = A to B-1, Top = the rest. Default: two layers at each end; with a "
        "trunk on a server its own.",
    ),
]
DtypeName = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16. Default: float32 on a CPU, the checkpoint's on a GPU."),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of the model on the hub. Default: its default branch."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … Default: the first GPU if there is one.")]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_split_points(text: str | None) -> tuple[int, int] | None:
    """Turn `"2,6"` into `(2, 6)`.

    Raises:
        OptionError: not two integers.
    """
    if text is None:
        return None
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--split-points takes two integers such as 2,6; got {text!r}") from None
    return first, second


def parse_dtype(name: str | None) -> torch.dtype | None:
    """Turn the name of a dtype into the dtype.

    Raises:
        OptionError: unknown name.
    """
    if name is not None and name not in DTYPES:
        raise OptionError(f"--dtype takes {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name] if name else None


@contextmanager
def blamed_on(option: str, value: object) -> Iterator[None]:
    """Take an error of a library for one of this option's value, where a value was given.

    Raises:
        OptionError: with the option, its value, and what the library said.
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        if value is None or isinstance(error, CoreError):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OptionError(f"{option} {value} does not go with this model: {first_line}") from error
