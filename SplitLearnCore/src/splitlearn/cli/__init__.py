"""The `splitlearn` command: one noun and one model id, no configuration file needed."""

from splitlearn.cli.app import main

__all__ = ["main"]
