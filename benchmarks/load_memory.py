"""Memory of a trunk-only load of a 500 MB checkpoint, against the trunk's own weights.

Each load runs in a process of its own; peak growth of anonymous and file-backed memory (RssAnon + RssFile of
/proc/self/status, sampled every 2 ms), with every weight touched before the last sample. Linux only.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.models import gpt2_small
from benchmarks.servers import same_threads_everywhere

LOADER = r"""
import sys, threading, torch, transformers, transformers.models.gpt2.modeling_gpt2
from splitlearn.cli.quiet import set_up_logging
from splitlearn_core import load_part
from benchmarks.load_memory import resident_bytes
set_up_logging("error")
torch.ones(8, 8) @ torch.ones(8, 8)
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident_bytes())
before = resident_bytes()
watcher = threading.Thread(target=watch, daemon=True); watcher.start()
if sys.argv[2] == "trunk":
    model = load_part(sys.argv[1], "trunk", (2, 10))
else:
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
for parameter in model.parameters():
    parameter.sum()
done.set(); watcher.join()
weights = sum(parameter.nbytes for parameter in model.parameters())
print(max(peak, resident_bytes()) - before, weights)
"""


def resident_bytes() -> int:
    """Return anonymous and file-backed resident memory of this process."""
    total = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(("RssAnon:", "RssFile:")):
            total += int(line.split()[1]) * 1024
    return total


def measure(directory: Path, what: str) -> tuple[int, int]:
    """Load in a new process; return the peak growth and the weights' own size in bytes."""
    command = [sys.executable, "-c", LOADER, str(directory), what]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    growth, weights = output.split()[-2:]
    return int(growth), int(weights)


def main() -> None:
    """Print the table."""
    same_threads_everywhere()
    print("trunk [2, 10) of GPT-2-small size, float32 (mark: at most 1.15 times the trunk's own weights)")
    for layout, shard_size in (("one file", "10GB"), ("sharded", "60MB")):
        with gpt2_small(shard_size, torch.float32) as directory:
            for what in ("trunk", "whole"):
                growth, weights = measure(directory, what)
                print(
                    f"  {layout}, {what}: peak growth {growth / 1e6:.0f} MB, weights {weights / 1e6:.0f} MB, "
                    f"ratio {growth / weights:.3f}"
                )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
