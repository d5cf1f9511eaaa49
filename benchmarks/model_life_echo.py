"""What the process of `model_life`'s round trips runs: sessions that give back what they are sent."""

import torch

from splitlearn_comm import Action, ComputeCall, ComputeResult, Forward, ServiceInfo, SessionHost
from splitlearn_manager.runtime.load_reporter import LoadReporter
from splitlearn_manager.runtime.model_process_main import run
from splitlearn_manager.runtime.model_spec import ModelSpec


class Echo(SessionHost):
    """Computes nothing."""

    def get_info(self) -> ServiceInfo:
        """Takes anything."""
        return ServiceInfo(name="echo", stateful=True)

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """The tensor itself."""
        return ComputeResult(call.tensor)

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        """Nothing to make room for."""

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """The tensor itself."""
        return action.hidden if isinstance(action, Forward) else None

    async def close_session(self, session_id: str) -> None:
        """Nothing to free."""


def load(spec: ModelSpec, reporter: LoadReporter) -> Echo:
    """Make the host."""
    return Echo()


if __name__ == "__main__":
    run(load)
