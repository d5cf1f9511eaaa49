"""The command line: its commands, and how an error becomes one line and an exit status."""

import sys

import typer
from rich.console import Console

from splitlearn.cli.demo import demo
from splitlearn.cli.generate import generate
from splitlearn.cli.serve import serve
from splitlearn.cli.support import support

app = typer.Typer(
    help="Split inference of language models: text stays here, the middle layers run on a server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, serve, generate, support):
    app.command()(command)

USER_ERRORS = (OSError, ValueError, LookupError, ImportError)
"""What a user can mend: shown as one line. Anything else is a mistake of ours and keeps its traceback."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except USER_ERRORS as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {error}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
