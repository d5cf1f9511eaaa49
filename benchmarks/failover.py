"""How soon a client notices that the process it waits for was killed, over loopback.

A step is under way when the server's process is killed with SIGKILL; timed until the client knows. Milliseconds, not a
ratio: the mark is a bound on a wait, which a raw echo has too.
"""

import argparse
import statistics
import threading
import time

import torch

from splitlearn_comm import GRPCComputeClient, ServerUnavailableError
from splitlearn_comm.client import FixedDelay
from splitlearn_comm.testing import ServerProcess

MARK_MS = 150.0


def noticed_ms() -> float:
    """Return the time from the kill until the waiting step fails."""
    known_at_s: list[float] = []
    with (
        ServerProcess("splitlearn_comm.testing:Gated") as server,
        GRPCComputeClient(server.address, retry=FixedDelay(0.0, max_attempts=1)) as client,
    ):
        session = client.session()

        def wait_for_a_step() -> None:
            try:
                session.step(torch.ones(1, 1, 4))
            except ServerUnavailableError:
                known_at_s.append(time.perf_counter())

        waiting = threading.Thread(target=wait_for_a_step)
        waiting.start()
        while client.statistics().messages_sent < 2:  # the open and the step
            pass
        time.sleep(0.05)  # on its way; a kill before that would be noticed no later
        killed_at_s = time.perf_counter()
        server.kill()
        waiting.join()
    return 1000 * (known_at_s[0] - killed_at_s)


def main(trials: int) -> None:
    """Print the table."""
    times_ms = [noticed_ms() for _ in range(trials)]
    verdict = "met" if max(times_ms) <= MARK_MS else "MISSED"
    print(f"a killed server is noticed after, milliseconds (mark: at most {MARK_MS:.0f})")
    print(f"  median {statistics.median(times_ms):.1f}, most {max(times_ms):.1f} of {trials}: {verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=15)
    main(parser.parse_args().trials)
