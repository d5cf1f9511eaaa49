"""What a server of a trunk is without an engine: each session's steps run one by one, on one thread."""

from functools import partial

import torch

from splitlearn_comm import Action, ComputeCall, ComputeResult, Forward, ServiceInfo, SessionHost
from splitlearn_comm.worker import WorkerThread
from splitlearn_core import Trunk
from splitlearn_core.cache.part_cache import PartCache


class PlainTrunk(SessionHost):
    """Runs the forwards of a trunk's sessions, and nothing else, with the cache that transformers makes.

    Args:
        trunk: the part.
    """

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk.train(False)
        self._worker = WorkerThread("plain")
        self._caches: dict[str, PartCache] = {}

    def get_info(self) -> ServiceInfo:
        """Takes hidden states of the trunk's width."""
        return ServiceInfo(name="plain", stateful=True, hidden_size=self._trunk.hidden_size, dtype=self._trunk.dtype)

    async def teardown(self) -> None:
        """End the thread."""
        await self._worker.shutdown()

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Nobody asks for it here."""
        raise NotImplementedError

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        """Make a cache."""
        self._caches[session_id] = self._trunk.new_cache()

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Run a forward."""
        assert isinstance(action, Forward)
        return await self._worker.run(partial(self._forward, self._caches[session_id], action.hidden))

    async def close_session(self, session_id: str) -> None:
        """Forget its cache."""
        self._caches.pop(session_id, None)

    @torch.inference_mode()
    def _forward(self, cache: PartCache, hidden_BTH: torch.Tensor) -> torch.Tensor:
        output = self._trunk(hidden_BTH, past_key_values=cache)
        assert isinstance(output, torch.Tensor)
        return output
