"""Stateless functions that people write, and a torch module as one of them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from splitlearn_comm.checks import check_module
from splitlearn_comm.messages import KVEntries, ServiceInfo

OPTIONAL_ARGUMENTS = ("attention_mask", "position_ids", "past_key_values", "use_cache")
"""What `compute` may take besides the tensor. An argument it does not name is refused when a client sends it."""


class ComputeFunction(ABC):
    """A function of a tensor, to be served by a `GRPCComputeServer`.

    `compute` takes the tensor and, if it names them, any of the keyword arguments in `OPTIONAL_ARGUMENTS`. One that
    takes `use_cache` returns `(tensor, KVEntries)` when it is true. Calls never overlap.
    """

    inline: bool = False
    """True for a function so cheap that it may run on the server's event loop; otherwise it has a thread of its own."""

    @abstractmethod
    def compute(self, tensor: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
        """The function.

        Args:
            tensor: On the CPU, of any dtype, writable, not shared with anyone.

        Returns:
            The result, on any device; with `use_cache` the cache beside it.
        """

    def get_info(self) -> ServiceInfo | Mapping[str, Any]:
        """What is served, as a `ServiceInfo` or a mapping of its fields. Arriving tensors are validated against it."""
        return ServiceInfo(name=type(self).__name__)

    def setup(self) -> None:
        """Called once before the first `compute`, on the same thread."""
        return

    def teardown(self) -> None:
        """Called once after the last `compute`, on the same thread."""
        return

    def accepted_arguments(self) -> frozenset[str]:
        """Those of `OPTIONAL_ARGUMENTS` that `compute` takes."""
        return _named_in(self.compute)


class ModelComputeFunction(ComputeFunction):
    """A torch module as a function: in eval mode, without gradients.

    `attention_mask` and `position_ids` are passed on if the module's `forward` takes them. The result is the module's
    output, or the first item of it if that is a tuple or a Hugging Face output.

    Args:
        module: Put into eval mode here. It may be on any device; inputs are moved to that of its first parameter.
        info: What to say about it; by default its class name.
        inline: True for a module so cheap that it may run on the server's event loop.
    """

    def __init__(self, module: torch.nn.Module, *, info: ServiceInfo | None = None, inline: bool = False) -> None:
        check_module(module)
        self.module = module.eval()
        self.inline = inline
        self._info = info or ServiceInfo(name=type(module).__name__)
        self._accepted = _named_in(module.forward) & {"attention_mask", "position_ids"}
        self._device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def compute(self, tensor: torch.Tensor, **arguments: torch.Tensor) -> torch.Tensor:
        """The module's output for `tensor`, with `attention_mask` and `position_ids` where they are given."""
        with torch.inference_mode():
            moved = {name: value.to(self._device) for name, value in arguments.items()}
            output = self.module(tensor.to(self._device), **moved)
        result = output if isinstance(output, torch.Tensor) else output[0]
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"{type(self.module).__name__} returned {type(result).__name__}, expected a tensor first")
        return result

    def get_info(self) -> ServiceInfo:
        """What was said about the module when it was wrapped."""
        return self._info

    def accepted_arguments(self) -> frozenset[str]:
        """Those of `attention_mask` and `position_ids` that the module's `forward` takes."""
        return self._accepted


def _named_in(function: Callable[..., object]) -> frozenset[str]:
    parameters = inspect.signature(function).parameters
    return frozenset(name for name in OPTIONAL_ARGUMENTS if name in parameters)
