"""The account of each client: what it has of the server now, held against its limits.

Pure: no sockets, no clock; times are seconds of whatever clock the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable

from splitlearn_comm.errors import ResourceExhaustedError, SessionNotFoundError
from splitlearn_comm.server.security.limits import ClientLimits, TokenBucket

MAX_IDLE_ACCOUNTS = 4096
"""From so many accounts on, those of clients that have nothing are forgotten."""
ASK_AGAIN_S = 1.0
"""When to ask again for what gets free by other things than time."""
MAX_PAUSE_S = 1.0
"""How long a stream is not read at most, so that it is noticed when it ends."""
_BURST_S = 1.0


class ClientAccount:
    """What one client has. Made by `Accounts.of`.

    Args:
        name: The client's.
        limits: What it may have.
        owners: Whose each session is; shared by all accounts.
        is_address: Whether the name is only where the client comes from.
        now: The time.
    """

    def __init__(
        self, name: str, limits: ClientLimits, owners: dict[str, ClientAccount], is_address: bool, now: float
    ) -> None:
        self.name = name
        self._limits = limits
        self._owners = owners
        self._is_address = is_address
        self._requests = TokenBucket(limits.requests_per_s, limits.requests_per_s * _BURST_S, now)
        self._bytes = TokenBucket(limits.bytes_per_s, limits.bytes_per_s * _BURST_S, now)
        self._num_calls = 0
        self._bytes_held = 0
        self._reply_bytes: dict[str, int] = {}
        self._is_open: Callable[[str], bool] = lambda _: True

    def __repr__(self) -> str:
        return (
            f"<client {self.name}: {self._num_calls} calls, {len(self._reply_bytes)} sessions, "
            f"{self._bytes_held} bytes held>"
        )

    def begin_call(self) -> None:
        """Count a call that begins; `end_call` has to follow. Raises `ResourceExhaustedError` if it is one too many."""
        if self._num_calls >= self._limits.max_calls:
            raise self._too_much(f"{self._num_calls} calls in flight", "max_calls", "wait for some of them to end")
        self._num_calls += 1

    def end_call(self) -> None:
        """Count a call that has ended."""
        self._num_calls -= 1

    def admit(self, num_bytes: int, now: float) -> None:
        """Let a request of so many bytes in. Raises `ResourceExhaustedError` if the client has asked too much."""
        wait_s = self._requests.wait_s(now)
        if wait_s:
            raise self._too_fast("requests", "requests_per_s", wait_s)
        wait_s = self._bytes.wait_s(now)
        if wait_s:
            raise self._too_fast("bytes", "bytes_per_s", wait_s)
        self.book(num_bytes)

    def book(self, num_bytes: int) -> None:
        """Count a request of so many bytes, whether or not it was let in."""
        self._requests.take(1.0)
        self._bytes.take(num_bytes)

    def wait_s(self, now: float) -> float:
        """Seconds until the client may ask for something again; 0 if it may now."""
        return max(self._requests.wait_s(now), self._bytes.wait_s(now))

    def open_session(self, session_id: str, is_open: Callable[[str], bool]) -> None:
        """Count a session that is to be opened.

        Args:
            session_id: Its name.
            is_open: Whether a session is open still; those that are not are counted no more.

        Raises:
            ResourceExhaustedError: It is one too many.
        """
        self._is_open = is_open
        self._forget_closed()
        if len(self._reply_bytes) >= self._limits.max_sessions:
            doing = "close sessions you no longer need"
            raise self._too_much(f"{len(self._reply_bytes)} sessions open", "max_sessions", doing)
        self._reply_bytes[session_id] = 0
        self._owners[session_id] = self

    def check_owns(self, session_id: str) -> None:
        """Raise `SessionNotFoundError` for a session of another client; an address proves nothing either way."""
        owner = self._owners.get(session_id)
        if owner is not None and owner is not self and not (owner._is_address and self._is_address):
            raise SessionNotFoundError(f"there is no session {session_id} of this client; open one of your own")

    def keep_reply(self, session_id: str, num_bytes: int) -> None:
        """Note how large the reply is that is kept for a session, instead of the one before."""
        self._bytes_held += num_bytes - self._reply_bytes.get(session_id, 0)
        self._reply_bytes[session_id] = num_bytes

    def hold(self, num_bytes: int) -> None:
        """Note that so many bytes more are kept, or fewer if negative. Raises `ResourceExhaustedError` if too many."""
        if num_bytes > 0 and self._bytes_held + num_bytes > self._limits.max_bytes_held:
            self._forget_closed()
            if self._bytes_held + num_bytes > self._limits.max_bytes_held:
                doing = "close sessions you no longer need, or send less at once"
                raise self._too_much(f"{self._bytes_held} bytes held here", "max_bytes_held", doing)
        self._bytes_held += num_bytes

    def is_idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting it."""
        self._forget_closed()
        return (
            not self._num_calls and not self._reply_bytes and self._requests.is_full(now) and self._bytes.is_full(now)
        )

    def _forget_closed(self) -> None:
        for session_id in [session_id for session_id in self._reply_bytes if not self._is_open(session_id)]:
            self._bytes_held -= self._reply_bytes.pop(session_id)
            if self._owners.get(session_id) is self:
                del self._owners[session_id]

    def _too_much(self, has: str, limit: str, doing: str) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"client {self.name} has {has}, and one client may have {getattr(self._limits, limit)}; {doing}, or raise "
            f"client_limits.{limit} at the server",
            retry_after_s=ASK_AGAIN_S,
        )

    def _too_fast(self, what: str, limit: str, wait_s: float) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"client {self.name} sends more {what} than {getattr(self._limits, limit):g} a second; send this again in "
            f"{wait_s:.3f} s, or raise client_limits.{limit} at the server",
            retry_after_s=wait_s,
        )


class Accounts:
    """The accounts of all clients of a server.

    Args:
        limits: What each may have.
    """

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._accounts: dict[str, ClientAccount] = {}
        self._owners: dict[str, ClientAccount] = {}
        self._sweep_at = MAX_IDLE_ACCOUNTS

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, name: str, is_address: bool, now: float) -> ClientAccount:
        """The account of a client, new if there is none; `is_address` if its name is only where it comes from."""
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= self._sweep_at:
                self._sweep(now)
            account = ClientAccount(name, self._limits, self._owners, is_address, now)
            self._accounts[name] = account
        return account

    def _sweep(self, now: float) -> None:
        self._accounts = {name: account for name, account in self._accounts.items() if not account.is_idle(now)}
        # Not again for each new client when all are busy.
        self._sweep_at = max(MAX_IDLE_ACCOUNTS, 2 * len(self._accounts))


class Meter:
    """Holds the messages of one stream against its client's account.

    Args:
        account: The client's.
        max_message_bytes: Largest message; what of it comes in chunks may come once again.
    """

    def __init__(self, account: ClientAccount, max_message_bytes: int) -> None:
        self.account = account
        self._max_bytes = 2 * max_message_bytes + (1 << 20)
        self._pending_bytes = 0

    def receive(self, num_bytes: int) -> None:
        """Count what came: a message or a chunk of one. Raises `ResourceExhaustedError` where the stream has to end."""
        if self._pending_bytes + num_bytes > self._max_bytes:
            raise ResourceExhaustedError(
                f"{self._pending_bytes + num_bytes} bytes came in chunks, and the message they belong to did not; "
                f"send a message after its chunks"
            )
        self.account.hold(num_bytes)
        self._pending_bytes += num_bytes

    def admit(self, now: float) -> None:
        """Let in the message that is whole now. Raises `ResourceExhaustedError` if the client has asked too much."""
        self.account.admit(self.release(), now)

    def release(self) -> int:
        """Hold nothing any more, as when the stream ends; returns the bytes that were held."""
        num_bytes, self._pending_bytes = self._pending_bytes, 0
        self.account.hold(-num_bytes)
        return num_bytes

    def settle(self, now: float) -> float:
        """Book a message that was refused, if that is not done yet.

        Returns:
            Seconds for which the stream is not to be read: a client that does not wait is made to.
        """
        if self._pending_bytes:
            self.account.book(self.release())
        return min(self.account.wait_s(now), MAX_PAUSE_S)
