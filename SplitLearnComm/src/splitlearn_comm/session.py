"""The server's book of sessions: what each has done, what it may do next, and when it ends.

Pure: no torch, no sockets, no clock. Times are seconds of whatever clock the caller hands in; replies are whatever
the caller wants to get back on a repeat.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from splitlearn_comm.errors import (
    InvalidRequestError,
    ResourceExhaustedError,
    SessionNotFoundError,
    StepOrderError,
)

MAX_FORGOTTEN = 4096
"""How many ended sessions are remembered, to tell an expired one from one that never was."""
_START_AGAIN = "open a new session and send the whole sequence again"


@dataclass(frozen=True, slots=True)
class Advance:
    """Append tokens."""

    batch: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Trim:
    """Remove tokens from the end."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class Permute:
    """Choose rows of the batch."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Change neither position nor batch."""


Effect = Advance | Trim | Permute | Mark
"""What a step does to position and batch."""


@dataclass(frozen=True, slots=True)
class Run:
    """The step is new and in order: do it, then commit or abandon."""

    position: int
    batch: int | None


@dataclass(frozen=True, slots=True)
class Replay:
    """The step was done before: answer with what was answered then."""

    reply: object


class Ledger:
    """One session: its position, its last step and the answer to that."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.position = 0
        self.step_id = 0
        self.batch: int | None = None
        self._position_before = 0
        self._reply: object | None = None
        self._running: Run | None = None

    def __repr__(self) -> str:
        state = "running" if self.is_running else "idle"
        return (
            f"<session {self.session_id}: step {self.step_id}, position {self.position}, batch {self.batch}, {state}>"
        )

    @property
    def is_running(self) -> bool:
        """Whether a step was admitted and neither committed nor abandoned."""
        return self._running is not None

    def admit(self, step_id: int, position: int, effect: Effect) -> Run | Replay:
        """Decide about a step.

        Args:
            step_id: Its number; the last one done is repeated, the one after that is run.
            position: Tokens in the cache before it, as the client counts.
            effect: What it does if it runs.

        Raises:
            StepOrderError: It is older or newer than that, expects another position, or another step is running.
            InvalidRequestError: Its effect cannot be: rows that are not there, more tokens removed than there are.
        """
        if self.is_running:
            raise StepOrderError(f"step {step_id} came while step {self.step_id + 1} is running; wait for its answer")
        if step_id == self.step_id and step_id > 0 and self._reply is not None:
            self._check_position(step_id, position, self._position_before)
            return Replay(self._reply)
        self._check_order(step_id)
        self._check_position(step_id, position, self.position)
        self._running = self._after(effect)
        return self._running

    def commit(self, reply: object) -> None:
        """Book the running step as done and remember its answer."""
        assert self._running is not None, "commit without a running step"
        self._position_before = self.position
        self.position, self.batch = self._running.position, self._running.batch
        self.step_id += 1
        self._reply = reply
        self._running = None

    def abandon(self) -> None:
        """Forget the running step: it changed nothing, and its number is free again."""
        self._running = None

    def adopt(self, step_id: int, position: int, batch: int | None) -> None:
        """Go on where the session was at another server, once this is abandoned; a repeat of its last step cannot be
        answered here.

        Raises:
            StepOrderError: This session has done something already.
        """
        if self.is_running or self.step_id or self.position:
            raise StepOrderError(f"session {self.session_id} is not new: a state can be imported into a new one only")
        self.step_id, self.position, self.batch = step_id, position, batch
        self._position_before, self._reply = -1, None
        # Running until the host has taken the state over, so that nobody goes on with the session before.
        self._running = Run(position, batch)

    def _check_order(self, step_id: int) -> None:
        if step_id <= self.step_id:
            raise StepOrderError(
                f"step {step_id} is repeated too late: step {self.step_id} is done, and only that can be repeated"
            )
        if step_id > self.step_id + 1:
            raise StepOrderError(
                f"step {step_id} is ahead of its turn: step {self.step_id} is done, expected {self.step_id + 1}"
            )

    def _check_position(self, step_id: int, came: int, expected: int) -> None:
        if came != expected:
            raise StepOrderError(
                f"step {step_id} expects {came} tokens in the cache, the session has {expected}; {_START_AGAIN}"
            )

    def _after(self, effect: Effect) -> Run:
        match effect:
            case Advance(batch, num_tokens):
                return self._after_advance(batch, num_tokens)
            case Trim(num_tokens):
                return self._after_trim(num_tokens)
            case Permute(indices):
                return self._after_permute(indices)
            case Mark():
                return Run(self.position, self.batch)

    def _after_advance(self, batch: int, num_tokens: int) -> Run:
        if self.batch is not None and batch != self.batch:
            raise InvalidRequestError(
                f"the batch has changed: expected {self.batch} rows as before, came {batch}; reorder to change them"
            )
        return Run(self.position + num_tokens, batch)

    def _after_trim(self, num_tokens: int) -> Run:
        if not 0 <= num_tokens <= self.position:
            raise InvalidRequestError(
                f"cannot crop {num_tokens} tokens: expected 0 to {self.position}, the number in the cache"
            )
        return Run(self.position - num_tokens, self.batch)

    def _after_permute(self, indices: tuple[int, ...]) -> Run:
        batch = self.batch or 0
        if not indices or not all(0 <= index < batch for index in indices):
            raise InvalidRequestError(
                f"cannot reorder rows by {list(indices)}: expected at least one index, each from 0 to {batch - 1}"
                if batch
                else "cannot reorder rows before the first forward: there are none yet"
            )
        return Run(self.position, len(indices))


@dataclass(slots=True)
class _Entry:
    ledger: Ledger
    opened_at: float
    last_used: float
    attachment: int
    client: str
    adapter: str
    """With which it computes; empty for none."""
    is_training: bool = False
    is_given_up: bool = False
    """Whether its client was waited for, when the server stopped, for long enough."""
    trains: str = ""
    """Under what name its client computes with what it trains; empty for nothing."""
    detached_at: float | None = None


class SessionTable:
    """All sessions of a server: which stream each belongs to, and when it is over.

    Args:
        max_sessions: How many may be open at once.
        idle_timeout_s: A session without a step for so long ends; of one that trains, calls and steps that compute with
            what it trains count too.
        detached_timeout_s: A session whose stream broke ends when no new stream takes it up for so long.
    """

    def __init__(self, *, max_sessions: int, idle_timeout_s: float, detached_timeout_s: float) -> None:
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._detached_timeout_s = detached_timeout_s
        self._entries: dict[str, _Entry] = {}
        self._training: dict[tuple[str, str], list[_Entry]] = {}
        self._forgotten: OrderedDict[str, str] = OrderedDict()
        self._attachments = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        detached = sum(entry.detached_at is not None for entry in self._entries.values())
        return f"<{len(self)} of {self._max_sessions} sessions open, {detached} detached>"

    def has(self, session_id: str) -> bool:
        """Whether the session is open."""
        return session_id in self._entries

    def open(self, session_id: str, now: float, *, client: str = "", adapter: str = "") -> int:
        """Add a session; returns the number of its attachment to the stream that opened it.

        Args:
            session_id: Its name.
            now: The time.
            client: Whose it is.
            adapter: Name of that one's adapter with which it computes; empty for none.

        Raises:
            InvalidRequestError: The id is empty, too long or taken.
            ResourceExhaustedError: There are as many sessions as may be.
        """
        if not 0 < len(session_id) <= 128:
            raise InvalidRequestError(f"a session id has 1 to 128 characters, this one has {len(session_id)}")
        if self.has(session_id):
            raise InvalidRequestError(f"session {session_id} exists already; choose another id, or resume it")
        if len(self) >= self._max_sessions:
            raise ResourceExhaustedError(
                f"the server has {len(self)} sessions open and takes no more; try again later, close sessions you no "
                f"longer need, or raise max_sessions at the server"
            )
        self._attachments += 1
        self._entries[session_id] = _Entry(Ledger(session_id), now, now, self._attachments, client, adapter)
        return self._attachments

    def resume(self, session_id: str, now: float) -> int:
        """Attach a session to another stream; the one before can do nothing with it any more.

        Raises:
            SessionNotFoundError: There is no such session.
        """
        entry = self._find(session_id)
        self._attachments += 1
        entry.attachment, entry.detached_at, entry.last_used = self._attachments, None, now
        return self._attachments

    def ledger(self, session_id: str) -> Ledger:
        """The session's ledger. Raises `SessionNotFoundError` if there is none."""
        return self._find(session_id).ledger

    def attachment(self, session_id: str) -> int | None:
        """The number of the stream that the session was attached to last; None if it is not open."""
        entry = self._entries.get(session_id)
        return None if entry is None else entry.attachment

    def use(self, session_id: str, attachment: int, now: float) -> Ledger:
        """The session's ledger, for a step that came at `now` over the stream of this attachment.

        Raises:
            SessionNotFoundError: The session is unknown, or over, or went on over another stream.
        """
        entry = self._find(session_id)
        if entry.attachment != attachment:
            raise SessionNotFoundError(f"session {session_id} was taken up by another stream and goes on there")
        entry.last_used = now
        if entry.adapter:
            self.use_adapter(entry.client, entry.adapter, now)
        return entry.ledger

    def begin_training(self, session_id: str, adapter: str, *, has_weights: bool = True) -> None:
        """Note that a session trains; nothing if it is over.

        Args:
            session_id: Its name.
            adapter: Under what name its client computes with what it trains; empty for none.
            has_weights: Whether weights train here; if not, gradients only go through.
        """
        entry = self._entries.get(session_id)
        if entry is None:
            return
        entry.is_training = has_weights
        if adapter and not entry.trains:
            entry.trains = adapter
            self._training.setdefault((entry.client, adapter), []).append(entry)

    def is_training(self, session_id: str) -> bool:
        """Whether the session is open and trains weights."""
        entry = self._entries.get(session_id)
        return entry is not None and entry.is_training

    def idle_training_s(self, session_id: str, now: float) -> float | None:
        """Seconds since a step of it, or since anybody computed with what it trains; None where it trains nothing."""
        entry = self._entries.get(session_id)
        return now - entry.last_used if entry is not None and entry.is_training else None

    def give_up(self, session_id: str) -> None:
        """Note that its client was waited for, when the server stopped, for long enough; nothing if it is over."""
        if session_id in self._entries:
            self._entries[session_id].is_given_up = True

    def has_training_between_streams(self, now: float, patience_s: float) -> bool:
        """Whether the stream of a session that trains broke less than so long ago, and it was not taken up again."""
        left = (e.detached_at for e in self._entries.values() if e.is_training and not e.is_given_up)
        return any(left_at is not None and now - left_at < patience_s for left_at in left)

    def use_adapter(self, client: str, adapter: str, now: float) -> None:
        """Note that a client computes with an adapter at `now`: that is use of the session that trains it, if any."""
        for entry in self._training.get((client, adapter), ()):
            entry.last_used = now

    def detach(self, session_id: str, attachment: int, now: float) -> None:
        """Note that the stream of this attachment ended. Nothing happens if another has taken over."""
        entry = self._entries.get(session_id)
        if entry is not None and entry.attachment == attachment:
            entry.detached_at = now

    def close(self, session_id: str, reason: str = "it was closed by its client") -> bool:
        """Remove a session and remember why; False if it was not there."""
        entry = self._entries.pop(session_id, None)
        if entry is None:
            return False
        self._forget_training(entry)
        self._forgotten[session_id] = reason
        if len(self._forgotten) > MAX_FORGOTTEN:
            self._forgotten.popitem(last=False)
        return True

    def expire(self, now: float) -> tuple[str, ...]:
        """Remove the sessions whose time is over; returns their ids, to be closed at the host."""
        over = {session_id: reason for session_id, entry in self._entries.items() if (reason := self._over(entry, now))}
        for session_id, reason in over.items():
            self.close(session_id, reason)
        return tuple(over)

    def close_all(self) -> tuple[str, ...]:
        """Remove every session; returns their ids."""
        session_ids = tuple(self._entries)
        for session_id in session_ids:
            self.close(session_id, "the server was stopping")
        return session_ids

    def _forget_training(self, entry: _Entry) -> None:
        others = [other for other in self._training.pop((entry.client, entry.trains), ()) if other is not entry]
        if others:  # of another service at this address
            self._training[entry.client, entry.trains] = others

    def _over(self, entry: _Entry, now: float) -> str | None:
        if entry.ledger.is_running:
            return None
        age_s, idle_s = now - entry.opened_at, now - entry.last_used
        if idle_s >= self._idle_timeout_s:
            return (
                f"it expired {age_s:.0f} s after it was opened: idle for {idle_s:.0f} s, "
                f"and the limit is {self._idle_timeout_s:g} s (idle_session_timeout_s)"
            )
        if entry.detached_at is not None and now - entry.detached_at >= self._detached_timeout_s:
            return (
                f"it expired {age_s:.0f} s after it was opened: its connection broke {now - entry.detached_at:.0f} s "
                f"before, and the limit is {self._detached_timeout_s:g} s (detached_session_timeout_s)"
            )
        return None

    def _find(self, session_id: str) -> _Entry:
        entry = self._entries.get(session_id)
        if entry is not None:
            return entry
        reason = self._forgotten.get(session_id)
        if reason is None:
            reason = "it was never opened on this server, or the server was started again since"
        raise SessionNotFoundError(f"there is no session {session_id}: {reason}; {_START_AGAIN}")
