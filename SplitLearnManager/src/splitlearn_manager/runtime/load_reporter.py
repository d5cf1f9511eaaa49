"""What a model's process tells while it loads, and how the other side reads it."""

import json
from dataclasses import asdict, dataclass

from splitlearn_manager.runtime.process_frames import Kind
from splitlearn_manager.runtime.process_link import BlockingLink

WARMING = "warming up"
"""The last phase: the weights are there."""


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """How far a load is."""

    phase: str
    """What is being done, in words."""
    num_done: int = 0
    """Tensors of the weights that are loaded."""
    num_total: int = 0
    """All of them; 0 while that is not known."""

    def __str__(self) -> str:
        return f"{self.phase}, {self.num_done} of {self.num_total} tensors" if self.num_total else self.phase


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a model will take, known before its weights are read."""

    device: str
    """Where it will run, with its index: `"cpu"`, `"cuda:0"`."""
    weights_bytes: int
    """Memory of its weights in the dtype they are loaded in."""


class LoadReporter:
    """Tells the serving process how a load goes on.

    Args:
        link: to the serving process.
    """

    def __init__(self, link: BlockingLink) -> None:
        self._link = link
        self._told = LoadProgress(phase="")

    def progress(self, phase: str, num_done: int = 0, num_total: int = 0) -> None:
        """Say how far it is; numbers that changed by less than a hundredth are not worth a message."""
        told = self._told
        is_near = phase == told.phase and num_done < num_total and (num_done - told.num_done) * 100 < num_total
        if not is_near:
            self._told = LoadProgress(phase=phase, num_done=num_done, num_total=num_total)
            self._link.send(Kind.PROGRESS, json.dumps(asdict(self._told)).encode())

    def ask_for_room(self, size: ModelSize) -> None:
        """Say how large the model will be, and wait until there is room for it."""
        self._link.send(Kind.SIZED, json.dumps(asdict(size)).encode())
        self._link.receive(Kind.ADMIT)
