"""Which of several servers to ask, in which order. Pure: the time is handed in."""

from __future__ import annotations

from collections.abc import Sequence

from splitlearn_comm.client.breaker import CircuitBreaker, RetryBudget
from splitlearn_comm.errors import ServerUnavailableError


class ReplicaBook:
    """What is known of the servers that can do the same.

    Shared by the threads of a client: each update is one assignment, and a lost one costs a try at most.

    Args:
        addresses: Of the servers, the preferred one first.

    Raises:
        ValueError: There is none, or one comes twice.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        if not addresses:
            raise ValueError("no address was given: expected at least one host:port")
        if len(set(addresses)) != len(addresses):
            raise ValueError(f"an address comes twice among the replicas {list(addresses)}; give each once")
        self.addresses = tuple(addresses)
        self._breakers = {address: CircuitBreaker() for address in addresses}
        self._reasons: dict[str, str] = {}
        self._budgets = {address: RetryBudget() for address in addresses}

    def __repr__(self) -> str:
        return f"<{', '.join(f'{address}: {self._breakers[address]!r}' for address in self.addresses)}>"

    @property
    def has_others(self) -> bool:
        """Whether there is more than one server."""
        return len(self.addresses) > 1

    def order(self, now_s: float, first: str | None = None, without: str | None = None) -> list[str]:
        """The servers to try, in order.

        Args:
            now_s: Now, on the clock of `failed`.
            first: One to begin with, if it may be asked.
            without: One to leave out.

        Raises:
            ServerUnavailableError: All are left alone for now; nothing was sent.
        """
        usable = [a for a in self.addresses if a != without and self._breakers[a].may_try(now_s)]
        if not usable:
            raise self._all_left_alone(now_s, without)
        # The healthier first; sorting is stable, so the order of the addresses decides between equals.
        return sorted(usable, key=lambda address: (address != first, self._breakers[address].failures))

    def may_retry(self) -> bool:
        """Whether enough calls succeed for failed ones to be made again."""
        return any(budget.may_retry() for budget in self._budgets.values())

    def succeeded(self, address: str) -> None:
        """Note that a server answered."""
        self._breakers[address].succeeded()
        self._budgets[address].succeeded()

    def failed(self, address: str, now_s: float, error: ServerUnavailableError) -> None:
        """Note that a server could not be reached, and why."""
        self._breakers[address].failed(now_s)
        self._reasons[address] = str(error).partition(";")[0]
        self._budgets[address].failed()

    def _all_left_alone(self, now_s: float, without: str | None) -> ServerUnavailableError:
        if not (asked := [address for address in self.addresses if address != without]):
            return ServerUnavailableError(f"there is no other server than {without}")
        wait_s = max(0.0, min(self._breakers[address].closed_at_s() for address in asked) - now_s)
        reasons = " and ".join(self._reasons[address] for address in asked)
        return ServerUnavailableError(
            f"{reasons}; after several failures in a row nothing is asked for another {wait_s:.1f} s: "
            f"is the server started, and is this it?"
        )
