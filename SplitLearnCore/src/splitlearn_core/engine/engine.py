"""Many sessions, one trunk: steps are submitted, and each turn runs what the scheduler says.

For one thread: whoever calls it does so from the trunk's own thread. It waits for nothing; it only reads the clock
that it is given, to measure forwards.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from splitlearn_core.cache.entries import LayerState, export_cache
from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.cache.ragged import AttentionSwitch
from splitlearn_core.engine.actions import Action, CropTokens, ReorderRows, RunTokens, StartRecording
from splitlearn_core.engine.batching import Batching, Joining
from splitlearn_core.engine.joined import Share, run_joined
from splitlearn_core.engine.limits import EngineLimits
from splitlearn_core.engine.scheduler import Scheduler
from splitlearn_core.engine.session import EngineSession
from splitlearn_core.engine.steps import Batch, Chunk, Step, StepKind
from splitlearn_core.engine.table import batching_of
from splitlearn_core.errors import PartInputError
from splitlearn_core.parts.compiling import is_compiled
from splitlearn_core.parts.part import going_on
from splitlearn_core.parts.trunk import Trunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """How a step ended."""

    ticket: int
    """Its ticket."""
    session_id: str
    """Its session."""
    output_BTH: torch.Tensor | None = None
    """Hidden states [B, T, H] on the device that they came from; None for a step without tokens."""
    error: BaseException | None = None
    """Why it failed; its session is over then."""
    began_s: float = 0.0
    """When its turn came, on the engine's clock; 0 where it never did."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn did."""

    results: tuple[StepResult, ...] = ()
    """Steps that ended; none when a prompt ran in part."""
    batch: Batch | None = None
    """What ran; None when nothing did."""
    wait_until_s: float | None = None
    """When to take the next turn if nothing is submitted before: steps wait for others that are about to come."""


class TrunkEngine:
    """Runs the sessions of one trunk, many at a time.

    Args:
        trunk: the part; put into evaluation mode here.
        limits: how much one forward may hold.
        batching: what is exact for the trunk's architecture; None to look it up, or to try it where nobody has yet.
        clock: seconds, from any moment on.
        on_batch: told what ran, from when until when on that clock; in the way of the next turn, so be quick.
    """

    def __init__(
        self,
        trunk: Trunk,
        limits: EngineLimits | None = None,
        *,
        batching: Batching | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_batch: Callable[[Batch, float, float], object] = lambda batch, began_s, ended_s: None,
    ) -> None:
        trunk.train(False)
        self._trunk = trunk
        self._is_compiled = is_compiled(trunk)
        self._clock = clock
        self._on_batch = on_batch
        self._limits = limits or EngineLimits()
        self._scheduler = Scheduler(self._limits)
        self.batching = batching or batching_of(trunk)
        switch = AttentionSwitch(trunk)
        if self.batching.joining is Joining.RAGGED and not switch.is_possible:
            self.batching = replace(self.batching, joining=Joining.PADDED)
        self._switch = switch if self.batching.joining is Joining.RAGGED else None
        self._sessions: dict[str, EngineSession] = {}
        self._actions: dict[int, Action] = {}
        self._parts: dict[int, list[torch.Tensor]] = {}
        self._began_s: dict[int, float] = {}
        self._num_submitted = 0

    def __repr__(self) -> str:
        return f"TrunkEngine({len(self._sessions)} sessions, {self.cached_tokens()} tokens, {self._scheduler!r})"

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    @torch.inference_mode()
    def open(self, session_id: str, *, client: str = "", cache: PartCache | None = None) -> None:
        """Open a session.

        Args:
            session_id: a name that no open session has.
            client: with whom it shares its turns; sessions of one client count as one.
            cache: a cache of the trunk to go on from; None for an empty one.
        """
        assert session_id not in self._sessions, f"session {session_id} is open already"
        self._sessions[session_id] = self._session(session_id, client, cache or self._trunk.new_cache())

    @torch.inference_mode()
    def replace(self, session_id: str, cache: PartCache) -> None:
        """Put another cache of the trunk into an open session that has no step in line."""
        self._sessions[session_id] = self._session(session_id, self._sessions[session_id].client, cache)

    def _session(self, session_id: str, client: str, cache: PartCache) -> EngineSession:
        return EngineSession(session_id, client, cache, grows_in_place=not self._is_compiled)

    def close(self, session_id: str) -> tuple[int, ...]:
        """Free a session, if it is open; return the tickets of its steps that will not run."""
        self._sessions.pop(session_id, None)
        dropped = self._scheduler.drop(session_id)
        for step in dropped:
            self._forget(step.ticket)
        return tuple(step.ticket for step in dropped)

    def submit(self, session_id: str, action: Action, asked_s: float | None = None) -> int:
        """Put a step of an open session in line.

        Args:
            session_id: its session.
            action: what it asks for.
            asked_s: when it was asked for, on the engine's clock, if that was before now: while a forward ran, perhaps.

        Returns:
            Its ticket, which its result will carry.
        """
        self._num_submitted += 1
        ticket = self._num_submitted
        self._actions[ticket] = action
        self._scheduler.submit(self._step(ticket, self._sessions[session_id], action, asked_s))
        return ticket

    def withdraw(self, ticket: int, session_id: str) -> bool:
        """Take a step out of the line, its session as before; return False if it has begun, or has ended."""
        if not self._scheduler.withdraw(ticket, session_id):
            return False
        del self._actions[ticket]
        return True

    def turn(self) -> Turn:
        """Run what is to be run next."""
        choice = self._scheduler.next_batch(self._clock())
        if choice is None:
            return Turn()
        if not isinstance(choice, Batch):
            return Turn(wait_until_s=choice.until_s)
        began_s = self._clock()
        for chunk in choice.chunks:
            self._began_s.setdefault(chunk.step.ticket, began_s)
        results = self._run(choice)
        ended_s = self._clock()
        self._scheduler.finished(choice, ended_s - began_s, ended_s)
        self._on_batch(choice, began_s, ended_s)
        return Turn(results=(*results, *self._ended_with(results)), batch=choice)

    @torch.inference_mode()
    def export(self, session_id: str) -> tuple[list[LayerState], int]:
        """Return a copy of a session's cache, and its position.

        Raises:
            UnsupportedModelError: the architecture caches something that cannot be exported.
        """
        cache = self._sessions[session_id].cache
        states = export_cache(cache)
        # Copies: the session goes on and writes where these tensors lie.
        return [
            LayerState(layer=s.layer, kind=s.kind, tensors={name: t.clone() for name, t in s.tensors.items()})
            for s in states
        ], cache.position

    def position(self, session_id: str) -> int:
        """Return the number of tokens in each row of a session's cache."""
        return self._sessions[session_id].cache.position

    def cached_tokens(self, session_id: str | None = None) -> int:
        """Return the number of tokens, rows times length, in one session's cache or in all."""
        return sum(s.cache.num_rows * s.cache.position for s in self._some(session_id))

    def kv_bytes(self, session_id: str | None = None) -> int:
        """Return the bytes that one session's cache takes, or all; room for tokens to come included."""
        return sum(session.kv_bytes() for session in self._some(session_id))

    def _some(self, session_id: str | None) -> Iterable[EngineSession]:
        return self._sessions.values() if session_id is None else (self._sessions[session_id],)

    def _step(self, ticket: int, session: EngineSession, action: Action, asked_s: float | None) -> Step:
        step = Step(
            ticket=ticket,
            session_id=session.session_id,
            client=session.client,
            kind=StepKind.OTHER,
            arrival_s=self._clock() if asked_s is None else asked_s,
        )
        if not isinstance(action, RunTokens):
            return step
        num_rows, num_tokens = action.hidden_BTH.shape[:2]
        return replace(
            step,
            kind=StepKind.FORWARD,
            num_rows=num_rows,
            num_tokens=num_tokens,
            can_join=self.batching.joining is not Joining.ALONE,
            can_be_cut=self.batching.can_chunk,
        )

    @torch.inference_mode()
    def _run(self, batch: Batch) -> list[StepResult]:
        shares = {chunk.step.ticket: self._share(chunk) for chunk in batch.chunks if len(batch.chunks) > 1}
        together = [chunk for chunk in batch.chunks if shares.get(chunk.step.ticket) is not None]
        outputs = self._run_together(together, [share for share in shares.values() if share is not None])
        results = (self._result(chunk, outputs.get(chunk.step.ticket)) for chunk in batch.chunks)
        return [result for result in results if result is not None]

    def _run_together(self, chunks: list[Chunk], shares: list[Share]) -> dict[int, torch.Tensor]:
        if len(chunks) < 2:
            return {}
        try:
            outputs = run_joined(self._trunk, shares, self._switch)
        # Whosever fault it is (and be it a sys.exit(), which would end the thread of all): each runs alone now, and
        # the guilty one fails there.
        except BaseException as error:
            # Said, for if it is nobody's every forward costs twice. Not what: that may hold what tensors hold.
            logger.warning("%d steps ran alone: their joined forward raised %s", len(chunks), type(error).__name__)
            return {}
        return {chunk.step.ticket: output for chunk, output in zip(chunks, outputs, strict=True)}

    def _result(self, chunk: Chunk, output_BTH: torch.Tensor | None) -> StepResult | None:
        """Run a chunk alone where it has no output yet; return the result of a step that has ended."""
        ticket, session_id = chunk.step.ticket, chunk.step.session_id
        action, session = self._actions[ticket], self._sessions[session_id]
        try:
            if isinstance(action, RunTokens):
                output_BTH = self._run_alone(session, action, chunk) if output_BTH is None else output_BTH
                self._parts.setdefault(ticket, []).append(output_BTH.to(action.hidden_BTH.device))
            else:
                self._change(session, action)
        except BaseException as error:  # some layers may hold the tokens and others not: this session cannot go on
            began_s = self._began_s[ticket]
            return StepResult(ticket=ticket, session_id=session_id, error=error, began_s=began_s)
        if not chunk.is_last:
            return None
        parts, began_s = self._parts.get(ticket, []), self._began_s[ticket]
        output = torch.cat(parts, dim=1) if len(parts) > 1 else next(iter(parts), None)
        self._forget(ticket)
        return StepResult(ticket=ticket, session_id=session_id, output_BTH=output, began_s=began_s)

    def _forget(self, ticket: int) -> None:
        """Keep nothing of a step any more."""
        self._actions.pop(ticket, None)
        self._parts.pop(ticket, None)
        self._began_s.pop(ticket, None)

    def _ended_with(self, results: Iterable[StepResult]) -> list[StepResult]:
        """End the sessions of steps that failed; return the results of their steps that will not run."""
        ended = []
        for result in results:
            if result.error is not None:
                error = PartInputError("an earlier step of this session failed; open a new session")
                self._forget(result.ticket)
                for ticket in self.close(result.session_id):
                    if ticket != result.ticket:
                        ended.append(StepResult(ticket=ticket, session_id=result.session_id, error=error))
        return ended

    def _run_alone(self, session: EngineSession, action: RunTokens, chunk: Chunk) -> torch.Tensor:
        hidden_BTH, mask, positions = self._inputs(session, action, chunk)
        if self._is_compiled:
            # Of one kind, whatever came: a graph for a piece of another tensor, as of a message, is for such pieces.
            hidden_BTH = hidden_BTH.clone(memory_format=torch.contiguous_format)
        output = self._trunk(hidden_BTH, mask, positions, past_key_values=session.cache)
        assert isinstance(output, torch.Tensor)
        return output

    def _inputs(
        self, session: EngineSession, action: RunTokens, chunk: Chunk
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return hidden states, mask and positions of a chunk, on the trunk's device."""
        hidden, mask, positions = action.hidden_BTH, action.attention_mask, action.position_ids
        if chunk.end - chunk.begin < chunk.step.num_tokens:
            hidden = hidden[:, chunk.begin : chunk.end]
            left = chunk.step.num_tokens - chunk.end
            mask = mask if mask is None else mask[:, : mask.shape[1] - left]
            positions = positions if positions is None else positions[:, chunk.begin : chunk.end]
        device = self._trunk.device
        if mask is None and positions is None:
            # Said and not left to the architecture: some count from 0 again at every step.
            positions = going_on(hidden.shape[0], session.cache.position, hidden.shape[1], device)
        return (
            hidden.to(device),
            mask if mask is None else mask.to(device),
            positions if positions is None else positions.to(device),
        )

    def _share(self, chunk: Chunk) -> Share | None:
        """Return what a chunk brings to a joined forward; None where it has to run alone."""
        action, session = self._actions[chunk.step.ticket], self._sessions[chunk.step.session_id]
        if not isinstance(action, RunTokens) or not session.can_join:
            return None
        hidden, mask, positions = self._inputs(session, action, chunk)
        num_rows, num_tokens, cached_len = *hidden.shape[:2], session.cache.position
        if mask is not None and bool((mask == 1).all()):
            mask = None
        if positions is None or positions.shape != (num_rows, num_tokens) or num_rows != session.cache.num_rows:
            return None  # without positions architectures differ in what they make of a mask
        if mask is not None and mask.shape != (num_rows, cached_len + num_tokens):
            return None
        return Share(session.cache, hidden, mask, positions)

    def _change(self, session: EngineSession, action: Action) -> None:
        match action:
            case ReorderRows(indices=indices):
                session.cache.reorder_cache(torch.tensor(indices, device=self._trunk.device))
            case CropTokens(num_tokens=num_tokens):
                session.cache.crop(-num_tokens)
            case StartRecording():
                session.start_recording()
