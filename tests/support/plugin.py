"""Fixtures for the tests of every package; loaded by the conftest at the root."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.trunk_process import TrunkProcess


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Undo what a command that ran in this process made of the log, for those that read it behind."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[Hub]:
    """A running, empty stand-in hub, whose clients keep their cache below `tmp_path`."""
    with Hub(tmp_path / "hf_home") as hub:
        yield hub


@pytest.fixture(scope="session")
def trunks() -> Iterator[TrunkProcess]:
    """A process that starts trunk servers on demand, the same for all tests."""
    with TrunkProcess() as process:
        yield process
