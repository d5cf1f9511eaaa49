"""Of many times those that tell something."""


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def shown(seconds: list[float]) -> str:
    """Return p50, p99 and the largest, in milliseconds."""
    p50, p99 = percentile(seconds, 0.5) * 1e3, percentile(seconds, 0.99) * 1e3
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, largest {max(seconds) * 1e3:.2f} ms, {len(seconds)} times"
