"""What loading a model costs those who are served meanwhile, what a process of its own costs a step, and what is left
of a hundred models that came and went. Each table says in its own module how it is measured.
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from benchmarks.model_life_cycles import print_cycles
from benchmarks.model_life_listing import print_listing
from benchmarks.model_life_loop import print_lag, print_round_trips
from benchmarks.models import gpt2_small
from benchmarks.servers import same_threads_everywhere


def find_own_programs() -> None:
    """Let processes find this package as this one does, wherever they start."""
    places = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(places)


def main(chosen: argparse.Namespace) -> None:
    """Print the tables."""
    same_threads_everywhere()
    find_own_programs()
    if chosen.only in (None, "listing"):
        print("list_models() through gRPC while a model of 510 MB loads and another decodes")
        print_listing(chosen.loads, chosen.calls, chosen.seconds)
    if chosen.only in (None, "cycles"):
        print("models that come and go")
        with tempfile.TemporaryDirectory(prefix="splitlearn-bench-") as temporary:
            print_cycles(Path(temporary), chosen.cycles)
    if chosen.only in (None, "trips"):
        print("a step of 3 KB through a process, against the hand-off to a thread (nothing computed)")
        asyncio.run(print_round_trips(chosen.trips, chosen.rounds))
    if chosen.only in (None, "lag"):
        print("the loop of a process that serves, on itself, while a model loads and another decodes")
        with gpt2_small() as directory:
            asyncio.run(print_lag(directory, chosen.loads, chosen.seconds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=3, help="loads at least, during which list_models() is asked for")
    parser.add_argument("--calls", type=int, default=1000, help="calls at least that fall into loads")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to watch while nothing loads")
    parser.add_argument("--cycles", type=int, default=100, help="models that come and go")
    parser.add_argument("--trips", type=int, default=2000, help="round trips of a batch")
    parser.add_argument("--rounds", type=int, default=7, help="batches of each kind")
    parser.add_argument("--only", choices=("listing", "cycles", "trips", "lag"), help="one of the tables")
    main(parser.parse_args())
