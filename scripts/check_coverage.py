"""Check that the tests take enough of the branches of each package, from `coverage json`.

Exit status 1 where a package is below the limit or was not measured at all.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("splitlearn", "splitlearn_core", "splitlearn_comm", "splitlearn_manager")


@dataclass(frozen=True, kw_only=True)
class BranchCount:
    """Branches of one package."""

    taken: int
    total: int

    @property
    def percent(self) -> float:
        """Share that was taken; code without a branch is all taken."""
        return 100.0 * self.taken / self.total if self.total else 100.0


def count_branches(report: Mapping[str, Any]) -> dict[str, BranchCount]:
    """Sum the branches of each measured package; `report` is what `coverage json` writes."""
    taken: Counter[str] = Counter()
    total: Counter[str] = Counter()
    measured = set()
    for name, file in report["files"].items():
        parts = Path(name).parts
        package = parts[parts.index("src") + 1] if "src" in parts else ""
        measured.add(package)
        taken[package] += file["summary"]["covered_branches"]
        total[package] += file["summary"]["num_branches"]
    return {name: BranchCount(taken=taken[name], total=total[name]) for name in PACKAGES if name in measured}


def main() -> int:
    """Print a line for each package; the exit status."""
    parser = argparse.ArgumentParser(description="Check the branch coverage of each package.")
    parser.add_argument("report", type=Path, help="written by `coverage json`")
    parser.add_argument("--least", type=float, default=85.0, help="percent of the branches (default: %(default)s)")
    options = parser.parse_args()
    counts = count_branches(json.loads(options.report.read_text(encoding="utf-8")))
    for name, count in counts.items():
        print(f"{name}: {count.taken} of {count.total} branches, {count.percent:.1f} %")
    low = [name for name, count in counts.items() if count.percent < options.least]
    low += [f"{name} (not measured)" for name in PACKAGES if name not in counts]
    if low:
        print(f"below {options.least:g} % of the branches: {', '.join(low)}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
