"""Which of several servers to ask, in which order. Pure: the time is handed in."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence
from typing import overload

from splitlearn_comm.addresses import check_address
from splitlearn_comm.client.replica import GOOD, Replica, Report
from splitlearn_comm.errors import CommError, DeadlineExceededError, ServerUnavailableError
from splitlearn_comm.messages import HealthReport, Load

QUIET_S = 5.0
"""A server that was silent, or could not be reached, is asked how it is only after so long."""
PROXY_TRIES = 4
"""How often a proxy is asked for another server when the one that it found is stopping."""


class AddressBook(Sequence[str]):
    """The servers that a client may use, how they are, and which comes next.

    A new session, or a stateless call, goes to the least loaded of those that can be reached and serve the model that
    is asked for; of equal ones, each in turn. A session stays where it is until its server is lost or drains. Several
    clients of a process may share one book, and different models may be served at different addresses of it.

    Args:
        addresses: Of the servers, `host:port` or `unix:/path`.
        in_order: Take the first that can be reached, and the others only when it is lost: one that is near, and some
            that are far. Nobody is asked how busy it is.
        is_proxy: Behind each address there are several servers: a session whose server drains looks for another through
            the same address.
        max_age_s: Before a session opens, all servers are asked how busy they are where what they said is older.
        patience_s: How long an answer to that is waited for; who does not give one comes behind those who do.
        turn: Whose turn it is at first; by default anybody's, so that clients started together do not all begin with
            the same server.

    Raises:
        ValueError: There is no address, one is none or comes twice, or a time is not greater than zero.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        in_order: bool = False,
        is_proxy: bool = False,
        max_age_s: float = 2.0,
        patience_s: float = 0.5,
        turn: int | None = None,
    ) -> None:
        if isinstance(addresses, str | bytes) or not isinstance(addresses, Iterable):
            addresses = (addresses,)
        addresses = tuple(addresses)
        if not addresses:
            raise ValueError("no address was given: expected at least one host:port")
        for address in addresses:
            check_address(address)
        if len(set(addresses)) != len(addresses):
            raise ValueError(f"an address comes twice among the replicas {list(addresses)}; give each once")
        for name, value in (("max_age_s", max_age_s), ("patience_s", patience_s)):
            if not value > 0:
                raise ValueError(f"{name} must be greater than zero, came {value}")
        self.addresses = addresses
        self.in_order = in_order
        self.is_proxy = is_proxy
        self.patience_s = patience_s
        self._max_age_s = max_age_s
        begin = random.randrange(len(addresses)) if turn is None else turn
        self._replicas = {a: Replica((i - begin) % len(addresses)) for i, a in enumerate(addresses)}
        self._num_turns = len(addresses)
        # Threads share a book, and what is counted up has to be counted down again.
        self._counting = threading.Lock()

    def __repr__(self) -> str:
        return f"<{'; '.join(f'{address}: {replica!r}' for address, replica in self._replicas.items())}>"

    def __len__(self) -> int:
        return len(self.addresses)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.addresses[index]

    @property
    def has_others(self) -> bool:
        """Whether a session that has to leave its server may find another."""
        return self.is_proxy or len(self) > 1

    @property
    def is_balancing(self) -> bool:
        """Whether there is anything to choose by how busy servers are."""
        return len(self) > 1 and not self.in_order

    def order(self, now_s: float, first: str | None = None, without: str | None = None) -> list[str]:
        """The servers to try, those that failed last, otherwise as the addresses were given.

        Args:
            now_s: Now, on the clock of `failed`.
            first: One to begin with, if it may be asked.
            without: One to leave out.

        Raises:
            ServerUnavailableError: All are left alone for now; nothing was sent.
        """
        # Sorting is stable, so the order of the addresses decides between equals.
        return sorted(self._usable(now_s, without), key=lambda a: (a != first, self._replicas[a].breaker.failures))

    def choose(
        self, now_s: float, service: str = "", first: str | None = None, without: str | None = None
    ) -> list[str]:
        """The servers to try for a session or a call, the least loaded first. Raises as `order` does.

        Args:
            now_s: Now, on the clock of `heard`.
            service: The model that is asked for; empty where that is left open.
            first: As in `order`.
            without: As in `order`; behind a proxy there are others at the same address, and it is not left out.
        """
        if self.is_proxy:
            addresses = sorted(self.order(now_s, first), key=lambda a: a == without)
            return [address for address in addresses for _ in range(PROXY_TRIES)]
        if not self.is_balancing:
            return self.order(now_s, first, without)
        usable = self._usable(now_s, without)
        ranks = {address: self._replicas[address].rank(service) for address in usable}
        best = [self._replicas[address] for address in usable if ranks[address] == min(ranks.values())]
        # What one said a minute ago cannot be compared with what another said just now.
        is_known = all(replica.is_fresh(service, now_s, self._max_age_s) for replica in best)

        def key(address: str) -> tuple[object, ...]:
            replica = self._replicas[address]
            weight = replica.weight(service) if is_known and replica in best else replica.num_calls
            return address != first, ranks[address], weight, replica.turn

        return sorted(usable, key=key)

    def to_ask(self, now_s: float, service: str = "", *, for_call: bool = False) -> tuple[str, ...]:
        """The servers to ask how busy they are, all at once, before one is chosen; empty where enough is known.

        Args:
            now_s: Now, on the clock of `heard`.
            service: The model that is wanted.
            for_call: For a stateless call only those are asked that were out of reach, after a while.
        """
        if not self.is_balancing:
            return ()
        usable = [(a, r) for a, r in self._replicas.items() if r.breaker.may_try(now_s)]
        if for_call:
            is_out = (a for a, r in usable if r.rank(service) > GOOD and now_s >= r.ask_again_s)
            return tuple(is_out) if len(usable) > 1 else ()
        known = [(a, r) for a, r in usable if not r.is_silent or now_s >= r.ask_again_s]
        is_enough = all(r.is_fresh(service, now_s, self._max_age_s) for _, r in known)
        return () if is_enough or len(usable) < 2 else tuple(address for address, _ in known)

    def heard(self, address: str, service: str, health: HealthReport, now_s: float) -> None:
        """Note what a server said of itself, and of one service."""
        replica = self._replicas[address]
        replica.is_silent = False
        replica.reports[service] = Report(health, now_s, replica.num_taken)
        if not health.serving:
            replica.ask_again_s = now_s + QUIET_S
        self.succeeded(address)

    def unheard(self, address: str, service: str, now_s: float, error: CommError) -> None:
        """Note that a server did not say how it is, and why."""
        if isinstance(error, DeadlineExceededError):
            replica = self._replicas[address]
            replica.is_silent, replica.ask_again_s = True, now_s + QUIET_S
        elif isinstance(error, ServerUnavailableError):
            self.failed(address, now_s, error)
        else:
            # It is there, and whatever it refuses it will refuse again where that matters.
            self.heard(address, service, HealthReport(serving=True), now_s)

    def took(self, address: str, service: str, load: Load | None, now_s: float) -> None:
        """Note that a server has taken a session, and what it said of itself with that."""
        self._turn(address)
        replica = self._replicas[address]
        with self._counting:
            replica.num_taken += 1
        if load is not None:
            replica.reports[service] = Report(HealthReport(serving=True, load=load), now_s, replica.num_taken)

    def begin_call(self, address: str) -> None:
        """Note that a stateless call goes to a server; `end_call` has to follow."""
        self._turn(address)
        with self._counting:
            self._replicas[address].num_calls += 1

    def end_call(self, address: str) -> None:
        """Note that a stateless call has ended."""
        with self._counting:
            self._replicas[address].num_calls -= 1

    def may_retry(self) -> bool:
        """Whether enough calls succeed for failed ones to be made again."""
        return any(replica.budget.may_retry() for replica in self._replicas.values())

    def succeeded(self, address: str) -> None:
        """Note that a server answered."""
        replica = self._replicas[address]
        replica.is_silent = False
        replica.breaker.succeeded()
        replica.budget.succeeded()

    def failed(self, address: str, now_s: float, error: ServerUnavailableError) -> None:
        """Note that a server could not be reached, and why."""
        if self.is_proxy and error.request_id:
            return  # one of those behind it has answered; the next may be another
        replica = self._replicas[address]
        replica.breaker.failed(now_s)
        replica.reason = str(error).partition(";")[0]
        replica.ask_again_s = now_s + QUIET_S
        replica.budget.failed()

    def _turn(self, address: str) -> None:
        with self._counting:
            self._num_turns += 1
            self._replicas[address].turn = self._num_turns

    def _usable(self, now_s: float, without: str | None) -> list[str]:
        usable = [a for a, replica in self._replicas.items() if a != without and replica.breaker.may_try(now_s)]
        if not usable:
            raise self._all_left_alone(now_s, without)
        return usable

    def _all_left_alone(self, now_s: float, without: str | None) -> ServerUnavailableError:
        if not (asked := [replica for address, replica in self._replicas.items() if address != without]):
            return ServerUnavailableError(f"there is no other server than {without}")
        wait_s = max(0.0, min(replica.breaker.closed_at_s() for replica in asked) - now_s)
        reasons = " and ".join(replica.reason for replica in asked)
        return ServerUnavailableError(
            f"{reasons}; after several failures in a row nothing is asked for another {wait_s:.1f} s: "
            f"is the server started, and is this its address?"
        )


def book_of(address: str | Sequence[str]) -> AddressBook:
    """The book of an address, of several, or the one that is given."""
    return address if isinstance(address, AddressBook) else AddressBook(address)
