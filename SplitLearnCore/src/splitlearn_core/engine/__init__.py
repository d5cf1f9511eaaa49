"""Many sessions on one trunk: which steps join one forward, and the forward itself. No network, no threads."""

from splitlearn_core.engine.actions import Action, CropTokens, ReorderRows, RunTokens, StartRecording
from splitlearn_core.engine.batching import Batching, Joining
from splitlearn_core.engine.engine import StepResult, TrunkEngine, Turn
from splitlearn_core.engine.limits import EngineLimits

__all__ = [
    "Action",
    "Batching",
    "CropTokens",
    "EngineLimits",
    "Joining",
    "ReorderRows",
    "RunTokens",
    "StartRecording",
    "StepResult",
    "TrunkEngine",
    "Turn",
]
