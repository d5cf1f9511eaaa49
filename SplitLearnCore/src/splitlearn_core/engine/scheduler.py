"""Which steps run together, and in which order. Pure: no torch, no clock, no waiting.

Steps of at most a few tokens join: all that wait, of equal length, in one forward. Longer ones are prompts and run
alone, in chunks that cost about as much as the others' steps since the last chunk, so that a prompt of any length
slows the others down by a factor and never stops them. The idea is Sarathi's (Agrawal et al., 2024, "Taming
Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve"), here with the chunk's length measured and not set.

Clients take turns, one step each; a client with many sessions gets no more turns than one with a single one while
both wait. Nobody starves: every turn goes to the client whose last one is longest ago.
"""

from collections import deque
from collections.abc import Iterable

from splitlearn_core.engine.limits import EngineLimits
from splitlearn_core.engine.pace import Pace, Rhythm
from splitlearn_core.engine.steps import Batch, BatchKind, Chunk, Step, StepKind, Wait


class Scheduler:
    """Holds the steps that wait, in order within each session, and says what to run next.

    Args:
        limits: limits of a forward.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._pace = Pace(limits)
        self._waiting: dict[str, deque[Step]] = {}
        self._done: dict[int, int] = {}
        self._rhythms: dict[str, Rhythm] = {}
        self._turns: dict[str, None] = {}
        self._running: Batch | None = None
        self._prompt_ended_s: float | None = None
        self._patient_since_s: float | None = None

    def __repr__(self) -> str:
        running = f"{self._running.kind.value} {self._running.size}" if self._running else "nothing"
        prompts = sum(self._is_prompt(step) for step in self._heads())
        steps = sum(map(len, self._waiting.values()))
        return (
            f"Scheduler(running {running}, waiting {steps} steps of {len(self._waiting)} sessions, {prompts} prompts, "
            f"joined {_ms(self._pace.joined_s)} ms, prompt {_ms(self._pace.token_s)} ms/token)"
        )

    def submit(self, step: Step) -> None:
        """Take a step in; it runs after all earlier ones of its session."""
        self._waiting.setdefault(step.session_id, deque()).append(step)
        self._rhythms.setdefault(step.session_id, Rhythm()).came(step.arrival_s)
        self._turns.setdefault(step.client)

    def drop(self, session_id: str) -> tuple[Step, ...]:
        """Forget a session and return its steps that will not run; one that runs now ends as usual."""
        self._rhythms.pop(session_id, None)
        dropped = tuple(self._waiting.pop(session_id, ()))
        for step in dropped:
            self._done.pop(step.ticket, None)
        self._forget_idle_clients()
        return dropped

    def withdraw(self, ticket: int, session_id: str) -> bool:
        """Take a step out of the line; return False if it has begun, or is not there."""
        queue = self._waiting.get(session_id, deque())
        waiting = next((step for step in queue if step.ticket == ticket), None)
        is_running = self._running is not None and any(chunk.step.ticket == ticket for chunk in self._running.chunks)
        if waiting is None or is_running or ticket in self._done:
            return False
        queue.remove(waiting)
        if not queue:
            del self._waiting[session_id]
            self._forget_idle_clients()
        return True

    def next_batch(self, now_s: float) -> Batch | Wait | None:
        """Say what to run now: a batch, a time to wait for, or nothing.

        A batch has to be booked by `finished` before the next is asked for.
        """
        assert self._running is None, "the last batch was not booked by finished()"
        choice = self._choose(now_s)
        if isinstance(choice, Batch):
            self._running = choice
            self._patient_since_s = None
            for chunk in choice.chunks:
                # Behind all others: a client whose turn this is has the longest to wait for its next.
                self._turns.pop(chunk.step.client, None)
                self._turns[chunk.step.client] = None
        return choice

    def finished(self, batch: Batch, seconds: float, now_s: float) -> tuple[Step, ...]:
        """Book a batch that took `seconds` and ended now; return the steps that are done with it."""
        assert batch is self._running, "only the batch that next_batch() gave last can be finished"
        self._running = None
        if batch.kind is BatchKind.JOINED:
            self._pace.joined_ended(seconds, has_prompts=any(map(self._is_prompt, self._heads())))
        elif batch.kind is BatchKind.PROMPT:
            self._pace.prompt_ended(batch.size, seconds)
            self._prompt_ended_s = now_s
        return tuple(chunk.step for chunk in batch.chunks if self._book(chunk, now_s))

    def _book(self, chunk: Chunk, now_s: float) -> bool:
        queue = self._waiting.get(chunk.step.session_id)
        if not queue or queue[0].ticket != chunk.step.ticket:
            return chunk.is_last  # its session was dropped meanwhile
        if not chunk.is_last:
            self._done[chunk.step.ticket] = chunk.end
            return False
        queue.popleft()
        self._done.pop(chunk.step.ticket, None)
        if not queue:
            del self._waiting[chunk.step.session_id]
            self._forget_idle_clients()
        self._rhythms[chunk.step.session_id].ended(now_s)
        return True

    def _forget_idle_clients(self) -> None:
        # One that comes back stands behind all who wait, as if it had just had a turn.
        waiting = {queue[0].client for queue in self._waiting.values()}
        self._turns = {client: None for client in self._turns if client in waiting}

    def _heads(self) -> Iterable[Step]:
        return (queue[0] for queue in self._waiting.values())

    def _choose(self, now_s: float) -> Batch | Wait | None:
        heads = list(self._heads())
        if others := [step for step in heads if step.kind is StepKind.OTHER]:
            return Batch(kind=BatchKind.OTHER, chunks=tuple(Chunk(step=s, begin=0, end=s.num_tokens) for s in others))
        prompts = [step for step in heads if self._is_prompt(step)]
        short = [step for step in heads if not self._is_prompt(step)]
        if prompts and not self._any_before_chunk(short, prompts):
            return self._prompt(prompts, now_s)
        return self._joined(short, now_s, may_wait=not prompts) if short else None

    def _is_prompt(self, step: Step) -> bool:
        return step.kind is StepKind.FORWARD and step.num_tokens > self._limits.max_join_tokens

    def _any_before_chunk(self, short: list[Step], prompts: list[Step]) -> bool:
        # Prompts and the others take turns: a chunk, then whatever came while it ran or before there was a prompt.
        until_s = min(step.arrival_s for step in prompts)
        if self._prompt_ended_s is not None:
            until_s = max(until_s, self._prompt_ended_s)
        return any(step.arrival_s <= until_s for step in short)

    def _prompt(self, prompts: list[Step], now_s: float) -> Batch:
        step = self._by_turns(prompts)[0]
        begin = self._done.get(step.ticket, 0)
        size = self._pace.chunk_size(is_alone=self._is_alone(step.session_id, now_s))
        num_tokens = max(1, size // step.num_rows) if step.can_be_cut else step.num_tokens
        chunk = Chunk(step=step, begin=begin, end=min(step.num_tokens, begin + num_tokens))
        return Batch(kind=BatchKind.PROMPT, chunks=(chunk,))

    def _is_alone(self, session_id: str, now_s: float) -> bool:
        if any(other != session_id and not self._is_prompt(queue[0]) for other, queue in self._waiting.items()):
            return False
        ends = (rhythm.ended_s for other, rhythm in self._rhythms.items() if other != session_id)
        return all(ended_s is None or now_s - ended_s >= self._limits.active_s for ended_s in ends)

    def _joined(self, short: list[Step], now_s: float, *, may_wait: bool) -> Batch | Wait:
        by_turns = self._by_turns(short)
        first = by_turns[0]
        if not first.can_join:
            return _batch([first])
        alike = [step for step in by_turns if step.can_join and step.num_tokens == first.num_tokens]
        chosen = list(self._within_limits(alike))
        # Steps that cannot all go now, or for which a prompt waits, have nothing to gain from waiting for more.
        may_wait = may_wait and len(chosen) == len(short)
        wait_until_s = self._worth_waiting_until_s(now_s) if may_wait else None
        return _batch(chosen) if wait_until_s is None else Wait(until_s=wait_until_s)

    def _within_limits(self, steps: Iterable[Step]) -> Iterable[Step]:
        num_rows = 0
        for step in steps:
            num_rows += step.num_rows
            if num_rows > step.num_rows and (
                num_rows > self._limits.max_rows or num_rows * step.num_tokens > self._limits.max_tokens
            ):
                return
            yield step

    def _worth_waiting_until_s(self, now_s: float) -> float | None:
        """Return until when to wait for sessions that are about to step; None to go."""
        since_s = now_s if self._patient_since_s is None else self._patient_since_s
        deadline_s = since_s + self._pace.patience_s()
        overdue = [
            overdue_s
            for session_id, rhythm in self._rhythms.items()
            if session_id not in self._waiting
            and (expected_s := rhythm.expected_s()) is not None
            and (overdue_s := rhythm.overdue_s()) is not None
            and expected_s <= deadline_s
            and overdue_s > now_s
        ]
        if not overdue or now_s >= deadline_s:
            return None
        self._patient_since_s = since_s
        return min(deadline_s, max(overdue))

    def _by_turns(self, steps: Iterable[Step]) -> list[Step]:
        """Sort steps: one of each client, the client whose turn is longest ago first, then the next of each."""
        of_client: dict[str, list[Step]] = {client: [] for client in self._turns}
        for step in sorted(steps, key=lambda step: (step.arrival_s, step.ticket)):
            of_client[step.client].append(step)
        rounds = max(map(len, of_client.values()))
        return [own[turn] for turn in range(rounds) for own in of_client.values() if turn < len(own)]


def _batch(steps: Iterable[Step]) -> Batch:
    return Batch(kind=BatchKind.JOINED, chunks=tuple(Chunk(step=step, begin=0, end=step.num_tokens) for step in steps))


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e3:.2f}"
