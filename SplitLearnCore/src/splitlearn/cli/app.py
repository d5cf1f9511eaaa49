"""The command line: its commands, and how an error becomes one line and an exit status."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from splitlearn.cli.demo import demo
from splitlearn.cli.generate import generate
from splitlearn.cli.serve import serve
from splitlearn.cli.support import support
from splitlearn_core import CoreError

app = typer.Typer(
    help="Split inference of language models: text stays here, the middle layers run on a server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, serve, generate, support):
    app.command()(command)

USER_ERRORS = (OSError, ValueError, LookupError, ImportError, CoreError)
"""What a user can mend: shown as one line. Anything else is a mistake of ours and keeps its traceback."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, (*USER_ERRORS, *wire_errors())):
            raise
        # Escaped: square brackets, as in shapes and in the extras of pip, are no markup here.
        message = escape(" ".join(str(error).split()))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {message}", highlight=False)
        sys.exit(1)


def wire_errors() -> tuple[type[Exception], ...]:
    """Return the errors of SplitLearnComm, which only a command that uses it has imported."""
    comm = sys.modules.get("splitlearn_comm")
    return () if comm is None else (comm.CommError,)
