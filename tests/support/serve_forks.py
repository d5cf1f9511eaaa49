"""What `ServeProcesses` runs: a process that has imported everything, and forks a `splitlearn serve` when asked to.

Each line on standard input is a list: a file for the output, and the command's arguments; with `loop` before them they
are those of `training_program` instead. It is answered by the number of the process. A line with a number is answered
by the status that this process has ended with. When standard input closes, those that are left are killed.
"""

import json
import os
import signal
import sys

import torch

import splitlearn_manager  # noqa: F401 - imported here, once, so that nobody has to wait for it
from splitlearn.cli import main as command
from tests.support import training_program


def forked(output: str, arguments: list[str]) -> int:
    """Begin a process that runs the command; return its number."""
    process = os.fork()
    if process:
        return process
    # As it would be started: nothing of this process' input and output, and the end of one is the end of the other.
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(0)
    try:
        if arguments[0] == "loop":
            training_program.main(arguments[1:])
        else:
            sys.argv = ["splitlearn", *arguments]
            command()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    """Do what is asked until standard input closes."""
    torch.set_num_threads(1)
    running = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1])
            running.discard(asked)
        else:
            answer = forked(asked[0], asked[1:])
            running.add(answer)
        print(answer, flush=True)
    for process in running:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


if __name__ == "__main__":
    main()
