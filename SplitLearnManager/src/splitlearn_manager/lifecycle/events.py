"""What happens to models, for whoever wants to follow it."""

import asyncio
import weakref
from dataclasses import dataclass
from typing import Self

from splitlearn_manager.lifecycle.state import Condition, State
from splitlearn_manager.runtime.load_reporter import LoadProgress

MAX_WAITING = 256
"""Events kept for a reader that does not come for them; beyond, the oldest are dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEvent:
    """A model went to another state, or its load got on."""

    number: int
    """Counts the events of a manager; a gap is an event that was dropped."""
    name: str
    version: int
    condition: Condition
    """The state it is in, why, and since when."""
    progress: LoadProgress | None = None
    """How far its load is; None beside a load."""

    @property
    def state(self) -> State:
        """The state it is in."""
        return self.condition.state


class EventStream:
    """The events from its making on, as an asynchronous iterator; it ends when the manager is closed."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[ModelEvent | None] = asyncio.Queue()

    def put(self, event: ModelEvent | None) -> None:
        """Add an event, or the end."""
        if self._waiting.qsize() >= MAX_WAITING:
            self._waiting.get_nowait()
        self._waiting.put_nowait(event)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ModelEvent:
        event = await self._waiting.get()
        if event is None:
            self.put(None)  # for whoever asks again
            raise StopAsyncIteration
        return event


class Broadcaster:
    """Hands each event to all streams that somebody still holds."""

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._num_events = 0
        self._is_closed = False

    def subscribe(self) -> EventStream:
        """Return a stream of what happens from now on."""
        stream = EventStream()
        if self._is_closed:
            stream.put(None)
        self._streams.add(stream)
        return stream

    def tell(self, name: str, version: int, condition: Condition, progress: LoadProgress | None = None) -> None:
        """Make an event and hand it out."""
        self._num_events += 1
        event = ModelEvent(number=self._num_events, name=name, version=version, condition=condition, progress=progress)
        for stream in tuple(self._streams):
            stream.put(event)

    def close(self) -> None:
        """End all streams."""
        self._is_closed = True
        for stream in tuple(self._streams):
            stream.put(None)
