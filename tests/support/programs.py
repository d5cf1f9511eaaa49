"""Programs that people start: as processes, with what they print."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTENING = "listening at "


def run_program(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 240.0,
    directory: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS`, in the root of the repository unless said, to its end. Check the returncode."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=timeout_s)


@contextmanager
def serving_program(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    ended_by: signal.Signals = signal.SIGTERM,
) -> Iterator[str]:
    """Run `python ARGUMENTS`, a server that prints where it listens, until the block ends; yields the address.

    Raises:
        AssertionError: it does not listen, or does not end with status 0 after the signal.
    """
    command = [sys.executable, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            line = process.stdout.readline()
            assert line.startswith(LISTENING), process.communicate()[1]
            yield line.removeprefix(LISTENING).strip()
            process.send_signal(ended_by)
            errors = process.communicate(timeout=60)[1]
            assert process.returncode == 0, errors
            assert "Traceback" not in errors, errors
        finally:
            if process.poll() is None:
                process.kill()
