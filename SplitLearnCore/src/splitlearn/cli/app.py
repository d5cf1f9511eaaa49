"""The command line: its commands, and how an error becomes one line and an exit status."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from splitlearn.cli.control import drain, load, status, unload
from splitlearn.cli.demo import demo
from splitlearn.cli.generate import generate
from splitlearn.cli.serve import serve
from splitlearn.cli.support import support
from splitlearn.cli.train import train
from splitlearn.cli.wording import in_options

app = typer.Typer(
    help="Split inference and fine-tuning of language models: text stays here, the middle layers run on a server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, serve, status, load, unload, drain, generate, train, support):
    app.command()(command)

ERROR_TREES = {
    "splitlearn.errors": "SplitLearnError",
    "splitlearn_core": "CoreError",
    "splitlearn_comm": "CommError",
    "splitlearn_manager": "ManagerError",
}
"""Module and root of each package's own errors."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except user_errors() as error:
        # Escaped: square brackets, as in shapes and in the extras of pip, are no markup here.
        message = escape(in_options(" ".join(str(error).split())))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {message}", highlight=False)
        sys.exit(1)


def user_errors() -> tuple[type[Exception], ...]:
    """Return what a user can mend, shown as one line: what our packages raise on purpose.

    Anything else is a mistake of ours and keeps its traceback. Of the packages only those count that a command has
    imported by now.
    """
    imported = {module: sys.modules.get(module) for module in ERROR_TREES}
    return tuple(getattr(module, ERROR_TREES[name]) for name, module in imported.items() if module is not None)
