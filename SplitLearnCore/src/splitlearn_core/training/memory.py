"""What trainings keep in memory, counted before it is taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from splitlearn_core.errors import TrainingMemoryError
from splitlearn_core.training.optimizers import optimizer_class
from splitlearn_core.training.port import TrunkTrainingSpec

KEEP_LESS = (
    "train with recompute=True, with smaller batches, or with fewer forwards before their backward (forwards that will "
    "have none belong under torch.no_grad())"
)
"""What to do where there is no room for a forward."""
HOW_ONLY = ("capturable", "foreach", "fused")
"""Options of how an optimizer's step runs, on some devices only; what it keeps is as large without them."""


class TrainingMemory:
    """The book of what the trainings of a trunk keep together. One user at a time.

    Args:
        limit_bytes: what they may keep; None for no limit.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.num_bytes = 0
        """What they keep now."""

    def __repr__(self) -> str:
        return f"<{self.num_bytes} of {'any number of' if self.limit_bytes is None else self.limit_bytes} bytes>"

    def take(self, num_bytes: int, what: str, advice: str) -> None:
        """Book memory that is about to be taken.

        Args:
            num_bytes: how much.
            what: what for, as the subject of a sentence.
            advice: what to do where there is not so much.

        Raises:
            TrainingMemoryError: it would be over the limit; nothing was booked.
        """
        if self.limit_bytes is not None and self.num_bytes + num_bytes > self.limit_bytes:
            raise TrainingMemoryError(
                f"{what} needs {num_bytes} bytes more, and trainings hold {self.num_bytes} here of at most "
                f"{self.limit_bytes}: {advice}"
            )
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Book memory that is free again."""
        assert num_bytes <= self.num_bytes
        self.num_bytes -= num_bytes


class Saved(NamedTuple):
    """A tensor that a graph keeps."""

    tensor: torch.Tensor
    """Without its graph."""
    version: int
    """How often it had been changed in place."""

    def opened(self) -> torch.Tensor:
        """Return the tensor. Torch looks at no versions itself where hooks saved it.

        Raises:
            RuntimeError: it has been changed since.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor {list(self.tensor.shape)} that a backward needs was modified by an inplace operation: it is "
                f"at version {self.tensor._version}; expected version {self.version}; run the forward again"
            )
        return self.tensor


class SavedForBackward:
    """Books what a forward, run inside the block, keeps for its backward; an error in the block gives it all back.

    Memory is counted by storages, each once, and without those of the model: a view of a message that came counts as
    the whole message. Each is booked when autograd saves it, so that a forward stops at the first one too many.

    Args:
        memory: the book.
        model: whose parameters and buffers are there anyway.
        advice: what to do where there is no room.
    """

    def __init__(self, memory: TrainingMemory, model: nn.Module, advice: str = KEEP_LESS) -> None:
        self.num_bytes = 0
        """What it keeps, up to now."""
        self._memory = memory
        self._advice = advice
        # With the tensors, until the block ends: memory that were free again would be taken for what was seen there.
        present = (*model.parameters(), *model.buffers())
        self._seen: dict[int, torch.Tensor] = {t.untyped_storage().data_ptr(): t for t in present}
        self._hooks = saved_tensors_hooks(self._pack, Saved.opened)

    def _pack(self, tensor: torch.Tensor) -> Saved:
        self.hold(tensor)
        # Not the tensor itself: one that its node returned holds that node, and neither would ever be free again
        # where no backward comes by.
        return Saved(tensor.detach(), tensor._version)

    def hold(self, tensor: torch.Tensor) -> None:
        """Book a tensor that is kept.

        Raises:
            TrainingMemoryError: it would be over the limit.
        """
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            what = f"a forward, of which {self.num_bytes} bytes are kept for its backward so far,"
            self._memory.take(storage.nbytes(), what, self._advice)
            self._seen[storage.data_ptr()] = tensor
            self.num_bytes += storage.nbytes()

    def expect(self, num_bytes: int) -> None:
        """Book what is kept beside what autograd saves.

        Raises:
            TrainingMemoryError: it would be over the limit.
        """
        self._memory.take(num_bytes, "a forward, of which what enters each layer is kept,", self._advice)
        self.num_bytes += num_bytes

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)
        self._seen.clear()
        if error is not None:
            self._memory.give_back(self.num_bytes)
            self.num_bytes = 0


def weight_bytes(trunk: nn.Module, spec: TrunkTrainingSpec) -> int:
    """Return what a training's own weights and their gradients take."""
    own = [*trunk.parameters(), *trunk.buffers()] if spec.full else trained_by(trunk, spec).values()
    return bytes_of(own) + bytes_of(trained_by(trunk, spec).values())


def trained_by(trunk: nn.Module, spec: TrunkTrainingSpec) -> Mapping[str, torch.Tensor]:
    """Return what trains, or tensors like it, by name."""
    if not spec.full:
        return spec.tensors or {}
    names = {name for group in spec.groups for name in group.names}
    return {name: parameter for name, parameter in trunk.named_parameters() if name in names}


def state_bytes(trunk: nn.Module, spec: TrunkTrainingSpec) -> int:
    """Return what an optimizer will keep beside the parameters, from one step of it on tensors without storage.

    Where its class does not run on those it is as much as Adam keeps.

    Raises:
        TrainingError: there is no such optimizer.
    """
    if not spec.groups:
        return 0
    kind, trained = optimizer_class(spec.optimizer), trained_by(trunk, spec)
    shadows = {name: nn.Parameter(torch.empty_like(tensor, device="meta")) for name, tensor in trained.items()}
    for shadow in shadows.values():
        shadow.grad = torch.empty_like(shadow)
    groups = [
        {
            **group.options,
            **{name: False for name in HOW_ONLY if name in group.options},
            "params": [shadows[name] for name in group.names if name in shadows],
        }
        for group in spec.groups
    ]
    try:
        optimizer: torch.optim.Optimizer = kind(groups)  # type: ignore[call-arg]
        optimizer.step()
    except (RuntimeError, TypeError, ValueError):
        return 2 * bytes_of(trained.values())
    return bytes_of(v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return what tensors take together."""
    return sum(tensor.nbytes for tensor in tensors)
