"""A served model to make mistakes with, and what is asked of an error."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from splitlearn_comm import CommError
from splitlearn_comm.quickstart import Client


class Served(NamedTuple):
    """A tiny GPT-2 of width 32 and 256 positions, cut at (2, 4), and the server that hosts its trunk."""

    directory: Path
    address: str
    client: Client


def assert_says(error: BaseException, *words: str) -> None:
    """Check that the message is one line that contains all the words."""
    message = str(error)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def assert_refused(kind: type[CommError], code: grpc.StatusCode, call: Callable[[], object], *words: str) -> None:
    """Check that the server refuses a call with this kind of error and these words."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.code is code
    assert caught.value.request_id is not None
    assert_says(caught.value, *words)
