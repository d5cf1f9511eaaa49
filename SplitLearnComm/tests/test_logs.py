"""The log: its lines of JSON, the ids in them, and what never is in them."""

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from splitlearn_comm import (
    AddressBook,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    InvalidRequestError,
    RemoteInternalError,
)
from splitlearn_comm.logs import MAX_ID_CHARACTERS, configure_logging, ids, log_handler
from splitlearn_comm.testing import RunningSumHost

TOKEN = "t" * 32


class Terminal(io.StringIO):
    """A stream that people look at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Takes what this package logs, as JSON."""
    stream = io.StringIO()
    handler = log_handler("json", stream)
    logger = logging.getLogger("splitlearn_comm")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def written(form: str | None, stream: io.StringIO, message: str, **extra: str | int) -> str:
    record = logging.LogRecord("some.where", logging.WARNING, "file", 1, message, (), None)
    vars(record).update(ids(**extra))
    handler = log_handler(form, stream)
    handler.handle(record)
    return stream.getvalue()


def test_a_line_is_one_object_with_time_level_logger_message_and_ids() -> None:
    line = written(None, io.StringIO(), 'two "lines"\nof ß', session="s", step=3)
    assert line.count("\n") == 1
    fields = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("time"))
    assert fields == {
        "level": "warning",
        "logger": "some.where",
        "message": 'two "lines"\nof ß',
        "session": "s",
        "step": 3,
    }


def test_on_a_terminal_it_is_text_unless_told() -> None:
    assert re.fullmatch(r"W \d\d:\d\d:\d\d some\.where: hello\n", written(None, Terminal(), "hello", session="s"))
    assert json.loads(written("json", Terminal(), "hello"))["message"] == "hello"
    assert written("text", io.StringIO(), "hello").endswith("some.where: hello\n")


def test_an_exception_is_in_the_line() -> None:
    stream = io.StringIO()
    logger = logging.Logger("alone")
    logger.addHandler(log_handler("json", stream))
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("failed")
    (line,) = lines(stream)
    assert line["message"] == "failed"
    assert line["exception"].endswith("KeyError: 'gone'")


def test_what_is_no_form_or_field_is_said() -> None:
    with pytest.raises(ValueError, match="a log is json or text; got 'xml'"):
        log_handler("xml")
    with pytest.raises(ValueError, match="got token"):
        ids(token="secret")


def test_ids_that_are_not_there_are_left_out_and_long_ones_cut() -> None:
    assert ids(client="", session=None, step=0) == {"splitlearn_step": 0}
    line = json.loads(written("json", io.StringIO(), "x", session="s" * 1000))
    assert line["session"] == "s" * MAX_ID_CHARACTERS


def test_a_refused_step_is_told_with_all_its_ids_and_without_its_contents(stream: io.StringIO) -> None:
    config = GRPCServerConfig(tokens={"alice": TOKEN})
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server:
        client = GRPCComputeClient(server.address, token=TOKEN, model="running sum")
        with client, client.session() as session:
            session.step(torch.full((1, 1, 4), 0.123456))
            with pytest.raises(InvalidRequestError) as raised:
                session.step(torch.full((1, 1, 4), float("nan")))
            name = session.session_id
    (line,) = [line for line in lines(stream) if line["message"].startswith("refused step")]
    told = {key: line[key] for key in ("client", "request", "session", "model", "step")}
    assert told == {
        "client": "alice",
        "request": raised.value.request_id,
        "session": name,
        "model": "running sum",
        "step": 2,
    }
    assert TOKEN not in stream.getvalue()
    assert "0.123" not in stream.getvalue()


class Failing(RunningSumHost):
    """Fails at every step, with what it was sent in its words."""

    async def run_step(self, session_id: str, action: object) -> torch.Tensor | None:
        raise RuntimeError(f"cannot {action}")


def test_a_failure_is_told_without_contents(stream: io.StringIO) -> None:
    with (
        GRPCComputeServer(Failing(), port=0) as server,
        GRPCComputeClient(server.address) as client,
        client.session() as session,
        pytest.raises(RemoteInternalError),
    ):
        session.step(torch.full((1, 1, 4), 0.123456))
    (line,) = [line for line in lines(stream) if line["level"] == "error"]
    assert line["step"] == 1
    assert "contents left out" in line["message"]
    assert "0.123" not in line["message"]


def test_a_client_tells_of_a_session_that_was_rebuilt(stream: io.StringIO) -> None:
    first, second = (GRPCComputeServer(RunningSumHost(), port=0) for _ in range(2))
    with second:
        first.start(block=False)
        with (
            GRPCComputeClient(AddressBook([first.address, second.address], in_order=True)) as client,
            client.session() as session,
        ):
            session.step(torch.ones(1, 2, 4))
            first.stop(grace_s=0)
            session.step(torch.ones(1, 1, 4))
            name = session.session_id
    told = [line for line in lines(stream) if line["logger"] == "splitlearn_comm.client"]
    assert any(line["session"] == name and line["step"] == 1 for line in told), told


def test_a_program_is_set_up_once_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        stream = io.StringIO()
        configure_logging("warning", "json", stream)
        configure_logging("warning", "json", stream)
        logging.getLogger("anything").warning("once")
        logging.getLogger("anything").info("never")
        assert [line["message"] for line in lines(stream)] == ["once"]
    finally:
        root.handlers[:] = before
        root.setLevel(level)
