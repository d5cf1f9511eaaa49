"""The port of this package: what a server needs from whoever does the computing."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from splitlearn_comm.errors import AdapterNotFoundError, UnsupportedOperationError
from splitlearn_comm.messages import Action, CacheUse, ComputeCall, ComputeResult, KVEntries, ServiceInfo
from splitlearn_comm.training import Trained, TrainingAction


class SessionHost(ABC):
    """Computes for a `GRPCComputeServer`: stateless calls, and sessions that keep state between steps.

    All methods are called on the server's event loop and must not block it: hand the work to a thread and await it.
    Steps of one session never overlap and come in order, each exactly once: order, repeats and positions are the
    server's business. Steps of different sessions, and stateless calls, may overlap.

    A method refuses by raising a `CommError`; any other exception reaches the client as one fixed sentence. A step that
    raises must leave its session as it was, or else answer every later step of it with `SessionNotFoundError`.
    """

    @abstractmethod
    def get_info(self) -> ServiceInfo:
        """What is served. Called after `setup`; cheap. What arrives is validated against it."""

    async def setup(self) -> None:
        """Called once before the first request."""
        return

    async def teardown(self) -> None:
        """Called once after the last request, when all sessions are closed."""
        return

    @abstractmethod
    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Do one stateless call. `past_key_values` of the result is given if and only if `use_cache` is.

        Raises:
            AdapterNotFoundError: The client has no adapter of the name that the call has.
        """

    @abstractmethod
    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        """Make room for a session with an empty cache.

        Args:
            session_id: Its name.
            client: Whose it is, as the server knows its clients: for a fair share of what there is.
            adapter: Name of an adapter of this client, with which the session computes, as long as it is open; empty
                for none. What adapters are is the host's business: one that has none calls `refuse_adapter`.

        Raises:
            AdapterNotFoundError: This client has no adapter of that name.
        """

    @abstractmethod
    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Do one step.

        A `CommError` raised here refuses the step and says that nothing has changed; after any other error of a
        stateful host the session is over.

        Returns:
            [B, T, H] for `Forward`, None for every other action. It must not change afterwards: it is sent, and kept
            for a repeat of the step.
        """

    async def train(self, session_id: str, action: TrainingAction) -> torch.Tensor | Trained | None:
        """Do one step of a session that trains.

        Raised errors mean what they mean in `run_step`.

        Returns:
            [B, T, H] for `ForwardPass`, `Trained` for `BackwardPass` and `ReadTraining`, None for every other action.

        Raises:
            UnsupportedOperationError: Nothing trains here; as every step on a host that does not override this.
        """
        raise UnsupportedOperationError(f"{self.get_info().name!r} cannot be trained")

    async def export_session(self, session_id: str) -> KVEntries:
        """The cache of a session, to be imported elsewhere; the session stays as it is.

        Raises:
            UnsupportedOperationError: It cannot be exported; as every one of a host that does not override this.
        """
        raise UnsupportedOperationError(f"{self.get_info().name!r} cannot export its sessions")

    async def import_session(self, session_id: str, cache: KVEntries) -> None:
        """Fill a session that was just opened with a cache that another host exported.

        Raises:
            InvalidRequestError: The cache is not of this host's kind.
            UnsupportedOperationError: None can be imported; as every one of a host that does not override this.
        """
        raise UnsupportedOperationError(f"{self.get_info().name!r} cannot import sessions")

    async def cache_use(self) -> CacheUse:
        """What the caches of all sessions take, for clients that choose among several servers; waited for only briefly.

        A host that does not override this says nothing of it. Steps and sessions the server counts by itself.
        """
        return CacheUse()

    @abstractmethod
    async def close_session(self, session_id: str) -> None:
        """Free a session. Also called when it expires or its client disappears; an unknown session is no error."""


def refuse_adapter(name: str) -> None:
    """Refuse an adapter where this client has none of that name.

    Raises:
        AdapterNotFoundError: There is a name, and not the empty one that stands for no adapter.
    """
    if name:
        raise AdapterNotFoundError(
            f"this client has no adapter {name!r} here: expected the name of one that it trains at this server now, or "
            f"has published there"
        )
