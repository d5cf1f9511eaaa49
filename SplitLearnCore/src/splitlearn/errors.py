"""What can go wrong at the front door, beside what the packages behind it raise.

SplitLearnError
├── AddressError         (ValueError)         what was given as a server's address is none
├── MissingPackageError  (ImportError)        a package that is not installed, with the pip line that installs it
├── OptionError          (ValueError)         an option of a command that cannot be
└── ServerEndedError     (ChildProcessError)  the server that a command started ended by itself
"""

from collections.abc import Iterator
from contextlib import contextmanager


class SplitLearnError(Exception):
    """Root of everything that the front door raises on purpose."""


class AddressError(SplitLearnError, ValueError):
    """What was given as a server's address is none."""


class MissingPackageError(SplitLearnError, ImportError):
    """A package that is not installed; the message names the `pip install` to run."""


class OptionError(SplitLearnError, ValueError):
    """An option of a command that cannot be: of the wrong form, or of a value that is not there."""


class ServerEndedError(SplitLearnError, ChildProcessError):
    """The server that a command started in another process ended before it listened."""


@contextmanager
def needing(message: str) -> Iterator[None]:
    """Import, inside the block, what may not be installed.

    Raises:
        MissingPackageError: with the message. A module of ours that is missing inside a package that is there is a
            mistake of ours and stays what it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package, _, module = (error.name or "").partition(".")
        if package.startswith("splitlearn") and module:
            raise
        raise MissingPackageError(message) from error
