"""What is known of one server among several. Pure: the time is handed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from splitlearn_comm.client.breaker import CircuitBreaker, RetryBudget
from splitlearn_comm.messages import HealthReport, Load

Rank = tuple[int, bool, bool]
GOOD: Final[Rank] = (0, False, False)
"""Of a server that can be reached and, as far as is known, serves what is asked for."""
_FULL = 1e-6


@dataclass(frozen=True, slots=True)
class Report:
    """What a server said of itself, and when."""

    health: HealthReport
    at_s: float
    num_taken: int
    """Sessions that had been taken there by then."""


@dataclass(slots=True)
class Replica:
    """One server: whether it can be reached, and how busy it is."""

    turn: int
    """When it was last chosen, counted in choices; of equal ones the one whose turn is longest ago comes next."""
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    budget: RetryBudget = field(default_factory=RetryBudget)
    reason: str = ""
    """Why it could not be reached."""
    reports: dict[str, Report] = field(default_factory=dict)
    """The last of each service."""
    num_calls: int = 0
    """Stateless calls from here that it has not answered."""
    num_taken: int = 0
    """Sessions taken there from here, ever."""
    is_silent: bool = False
    """Whether it did not answer when it was asked last."""
    ask_again_s: float = 0.0
    """When it is to be asked again, after it was silent or could not be reached."""

    def __repr__(self) -> str:
        parts = [f"{self.breaker.failures} failures"] if self.breaker.failures else []
        parts += ["silent"] if self.is_silent else []
        parts += [f"{name or 'all'} {_told(report)}" for name, report in self.reports.items()]
        return ", ".join([*parts, f"{self.num_calls} calls, {self.num_taken} sessions taken"])

    def rank(self, service: str) -> Rank:
        """What comes before all weight, the lowest first: failures in a row, silence, not serving this service."""
        is_served = service not in self.reports or self.reports[service].health.serving
        return self.breaker.failures, self.is_silent, not is_served

    def is_fresh(self, service: str, now_s: float, max_age_s: float) -> bool:
        """Whether what it said of this service is not too old."""
        return service in self.reports and now_s - self.reports[service].at_s <= max_age_s

    def weight(self, service: str) -> float:
        """How much it has to do for this service, as it said, and what came from here since.

        Each session counts one, each step or call that runs or waits one more, and a replica whose caches are half full
        counts twice, one whose caches are full comes behind all others.
        """
        report = self.reports[service]
        load = report.health.load or Load()
        free = 1.0 - load.kv_bytes / load.kv_limit_bytes if load.kv_limit_bytes else 1.0
        busy = 1 + load.steps + load.sessions + (self.num_taken - report.num_taken) + self.num_calls
        return busy / max(free, _FULL)


def _told(report: Report) -> str:
    if not report.health.serving:
        return f"not served at {report.at_s:.3f}"
    load = report.health.load
    if load is None:
        return f"served at {report.at_s:.3f}"
    return f"{load.steps} steps {load.sessions} sessions {load.kv_bytes}/{load.kv_limit_bytes} B at {report.at_s:.3f}"
