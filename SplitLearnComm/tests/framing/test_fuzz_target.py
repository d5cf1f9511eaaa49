import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.malformed import REAL, malformed

PATH = Path(__file__).resolve().parents[2] / "fuzz" / "fuzz_messages.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_messages", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TARGET = loaded()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    TARGET.one_input(data)


@pytest.mark.parametrize("first", [0, 7])
def test_real_messages_and_spoiled_ones_are_read_or_refused(first: int) -> None:
    for _, messages in REAL:
        TARGET.one_input(bytes([first]) + b"".join(messages))
    for message in malformed(seed=first, count=90):
        TARGET.one_input(bytes([first]) + (message.call or b"".join(message.session)))


def test_a_reader_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(data: bytes) -> None:
        raise IndexError("beyond the end")

    monkeypatch.setattr(TARGET.calls, "decode_call", fails)
    with pytest.raises(IndexError):
        TARGET.one_input(b"\0\0")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is not None, reason="atheris is here, and would fuzz for ever")
def test_without_atheris_the_program_says_what_to_install() -> None:
    ended = subprocess.run([sys.executable, PATH], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "pip install atheris" in ended.stderr
