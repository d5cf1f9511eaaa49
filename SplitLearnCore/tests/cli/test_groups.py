"""Options in groups: each field of a dataclass is one option of the command line."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from splitlearn.cli.groups import with_groups

Name = Annotated[str, typer.Argument(help="A name.")]
Size = Annotated[int | None, typer.Option("--size", "-s", min=1, help="How large. Default: as it comes.")]


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    size: Size = None
    colour: Annotated[str, typer.Option(help="Of the box.")] = "red"


@dataclass(frozen=True, kw_only=True)
class LidOptions:
    lid: Annotated[bool, typer.Option("--lid", help="With a lid. Default: open.")] = False


def made() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_groups
    def box(
        name: Name = "box", *, kind: BoxOptions, times: Annotated[int, typer.Option()] = 1, lid: LidOptions
    ) -> None:
        """Make a box."""
        print(name, kind.size, kind.colour, times, lid.lid)

    return app


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "box None red 1 False"),
        (["chest", "-s", "3", "--colour", "blue", "--times", "2", "--lid"], "chest 3 blue 2 True"),
    ],
)
def test_a_command_gets_its_groups(arguments: list[str], printed: str) -> None:
    result = CliRunner().invoke(made(), arguments)
    assert (result.exit_code, result.stdout) == (0, f"{printed}\n")


def test_help_shows_the_options_in_the_order_of_the_parameters() -> None:
    shown = CliRunner().invoke(made(), ["--help"], env={"COLUMNS": "200"}).stdout
    assert "Make a box." in shown
    places = [shown.index(option) for option in ("--size", "--colour", "--times", "--lid")]
    assert places == sorted(places)


def test_what_an_option_refuses_is_refused() -> None:
    result = CliRunner().invoke(made(), ["--size", "0"])
    assert result.exit_code == 2


def test_two_options_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="duplicate parameter name: 'colour'"):

        @with_groups
        def twice(*, kind: BoxOptions, colour: str = "") -> None: ...
