"""Bytes downloaded for each part of a sharded checkpoint, from the log of a stand-in hub on loopback.

GPT-2-small's shape, cut at (2, 10), shards of at most 30 MB; every part loads into an empty hub cache. Only the files
that hold a part's tensors may be asked for.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.models import gpt2_small
from benchmarks.servers import same_threads_everywhere
from tests.support.hub import Hub

LOAD = "import sys; from splitlearn_core import load_part; load_part('gpt2', sys.argv[1], (2, 10))"


def files_of(directory: Path, part: str) -> set[str]:
    """Return the shards that hold a part's tensors, by the names in the index."""
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    layers = {"bottom": range(2), "trunk": range(2, 10), "top": range(10, 12)}[part]

    def is_needed(name: str) -> bool:
        words = name.split(".")
        if "h" in words:
            return int(words[words.index("h") + 1]) in layers
        # GPT-2's head is its token embedding.
        return "wte" not in words or part != "trunk"

    return {file for name, file in weight_map.items() if is_needed(name)}


def main() -> None:
    """Print the table."""
    same_threads_everywhere()
    print("downloaded of a sharded checkpoint (mark: only the files that hold the part's tensors)")
    with gpt2_small("30MB") as directory:
        shards = {path.name: path.stat().st_size for path in directory.glob("*.safetensors")}
        for part in ("bottom", "trunk", "top"):
            with tempfile.TemporaryDirectory() as home, Hub(Path(home)) as hub:
                hub.publish("gpt2", directory)
                result = hub.run_python(LOAD, part)
                assert result.returncode == 0, result.stderr
                got = {name: size for name, size in hub.downloaded("gpt2").items() if name.endswith(".safetensors")}
            needed = files_of(directory, part)
            print(
                f"  {part}: {len(got)} of {len(shards)} shards, {sum(got.values()) / 1e6:.0f} of "
                f"{sum(shards.values()) / 1e6:.0f} MB; exactly those needed: {'yes' if set(got) == needed else 'no'}"
            )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
