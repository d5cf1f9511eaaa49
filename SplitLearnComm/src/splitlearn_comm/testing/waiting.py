"""Waiting for something to come true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def eventually(is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Return as soon as the condition is true; raise `AssertionError` if it is not by then."""
    end_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not is_true():
        if time.monotonic() > end_s:
            raise AssertionError(f"did not come true within {timeout_s:g} s")
        pause.wait(0.005)
