"""Functions to serve in tests."""

from __future__ import annotations

import threading
import time

import torch

from splitlearn_comm.function import ComputeFunction


class Identity(ComputeFunction):
    """Gives back what it gets, where the message arrived."""

    inline = True

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor


class Failing(ComputeFunction):
    """Fails with an error no client may see the text of."""

    secret = "the secret reason"

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """Raise `RuntimeError`."""
        raise RuntimeError(self.secret)


class Tenfold(ComputeFunction):
    """Gives back ten times as much as it gets: [N, ...] in, [10 N, ...] out."""

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """Ten copies, one after the other along the first dimension."""
        return torch.cat([tensor] * 10)


class Gated(ComputeFunction):
    """Waits in each call until the gate is opened, so that a test can act while a step is running."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        """Released once for each call that has begun."""
        self.gate = threading.Event()
        """Set it to let calls through."""

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, once the gate is open."""
        self.entered.release()
        self.gate.wait()
        return tensor


class SlowFunction(ComputeFunction):
    """Gives back what it gets, late.

    Args:
        delay_s: How long each call takes.
    """

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, after the delay."""
        time.sleep(self._delay_s)
        return tensor


class FaultyFunction(ComputeFunction):
    """Gives back what it gets, but for some calls, which fail.

    Args:
        failing_calls: Their numbers, from 1; sessions and stateless calls are counted together.
    """

    def __init__(self, *failing_calls: int) -> None:
        self._failing_calls = frozenset(failing_calls)
        self.num_calls = 0
        """Calls up to now, the failed ones included."""

    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself. Raises `RuntimeError` when it is the turn of a call to fail."""
        self.num_calls += 1
        if self.num_calls in self._failing_calls:
            raise RuntimeError(f"call {self.num_calls} fails, as it was told to")
        return tensor
