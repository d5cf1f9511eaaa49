"""`python -m benchmarks`: every table of docs/benchmarks.md, one after the other."""

import subprocess
import sys

TABLES = (
    "architectures",
    "generation_speed",
    "round_trip",
    "cadence",
    "throughput",
    "tensor_copies",
    "codecs",
    "observability",
    "batching",
    "sessions",
    "clients",
    "model_life",
    "failover",
    "wire_bytes",
    "load_memory",
    "downloads",
    "nonfinite_check",
    "attention",
    "compiling",
    "training_step",
    "prose",
)


def main() -> None:
    """Run each table in a process of its own, so that none warms another's caches."""
    for name in TABLES:
        print(f"\n== python -m benchmarks.{name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
