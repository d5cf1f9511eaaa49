"""Options that several commands share, each with its unit and default in the help text."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from splitlearn.errors import OptionError, SplitLearnError
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
TrunkAddress = Annotated[
    str | None,
    typer.Option(help="host:port or unix:/path of a trunk server. Default: load the trunk into this process."),
]
TrunkModel = Annotated[
    str | None,
    typer.Option(
        help="With --trunk: name of the model there, where a server has several. Default: the only one, or the one "
        "with the same weights and cut."
    ),
]

AdapterName = Annotated[
    str | None,
    typer.Option(
        help="With --trunk: name of an adapter that you have published there (run.publish_adapter), for the trunk to "
        "compute with. Default: none."
    ),
]

SAY_WHICH = "say which with --trunk host:port"

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


@dataclass(frozen=True, kw_only=True)
class CutOptions:
    """A group: where a model is cut, in which dtype, and which of its commits it is."""

    split_points: SplitAt = None
    dtype: DtypeName = None
    revision: Revision = None

    def check(self) -> None:
        """Raise `OptionError` where the cut points are not two integers, or there is no such dtype."""
        parse_split_points(self.split_points)
        parse_dtype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class TrunkOptions:
    """A group: which trunk."""

    trunk: TrunkAddress = None
    trunk_model: TrunkModel = None

    def check(self) -> None:
        """Raise `OptionError` where they do not go together."""
        if self.trunk_model and not self.trunk:
            raise OptionError(f"--trunk-model {self.trunk_model} names a model of a server: {SAY_WHICH}")
        if not (self.trunk_model or "").isascii():
            raise OptionError(f"--trunk-model takes the name of a model in ASCII; got {self.trunk_model!r}")


def check_finite(option: str, value: float) -> None:
    """Raise `OptionError` for `nan` and `inf`, which a command line takes for numbers."""
    if not math.isfinite(value):
        raise OptionError(f"{option} takes a finite number; got {value}")


def check_readable(option: str, path: Path | None) -> None:
    """Raise `OptionError` where an option names a file that cannot be read."""
    try:
        if path is not None:
            path.open("rb").close()
    except OSError as error:
        raise OptionError(f"{option} {path} cannot be read: {error.strerror or error}") from error


@contextmanager
def blamed_on(option: str, value: object, verdict: str = "does not go with this model") -> Iterator[None]:
    """Take an error of a library for one of this option's value, where a value was given.

    Raises:
        OptionError: with the option, its value, the verdict, and what the library said.
    """
    try:
        yield
    except (ValueError, ImportError, RuntimeError) as error:
        if value is None or isinstance(error, (CoreError, SplitLearnError)):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OptionError(f"{option} {value} {verdict}: {first_line}") from error
